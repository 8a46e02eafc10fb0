//! The calls that take JSON and give JSON.

use super::messages::{Changed, Message, Promises, Reply, refusal, reply};
use super::{Body, Plugin};
use crate::work::{Length, blocking};
use http::{Response, StatusCode};
use vellum_driver::Change;
use vellum_store::{Code, Error, Result};

impl Plugin {
    pub(super) async fn call(self, message: Message) -> Response<Body> {
        let name = message.name();
        let meter = self.meter.clone();
        match blocking(&meter, name, Length::Long, move || self.perform(message)).await {
            Some(Ok(answer)) => reply(StatusCode::OK, &answer),
            Some(Err(error)) => refusal(StatusCode::OK, &told(&error)),
            None => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server failed; its log says how"),
        }
    }

    fn perform(&self, message: Message) -> Result<Reply> {
        let graph = self.graph();
        let mut answer = Reply::default();
        match message {
            Message::Activate => answer.implements = Some(["GraphDriver"]),
            Message::Init { home, options, mapped } => self.init(&home, &options, mapped)?,
            Message::Capabilities => {
                answer.capabilities = Some(Promises { reproduces_exact_diffs: true });
            }
            Message::Create { id, parent, options } => graph.create(&id, parent.as_deref(), &options)?,
            Message::Remove { id } => graph.remove(&id)?,
            Message::Get { id, label } => {
                answer.dir = Some(graph.get(&id, label.as_deref())?.display().to_string());
            }
            Message::Put { id } => graph.put(&id)?,
            Message::Exists { id } => answer.exists = Some(graph.exists(&id)?),
            Message::Status => answer.status = Some(graph.status()?),
            Message::Metadata { id } => answer.metadata = Some(graph.metadata(&id)?.into_iter().collect()),
            Message::Cleanup => {
                let unmounted = graph.cleanup()?;
                tracing::info!(door = self.meter.door(), unmounted, "the daemon has ended");
            }
            Message::Changes { id, parent } => {
                let changes = graph.changes(&id, parent.as_deref())?.into_iter().map(|(change, path)| {
                    let kind = match change {
                        Change::Modified => 0,
                        Change::Added => 1,
                        Change::Deleted => 2,
                    };
                    // A name that is not UTF-8 is shown as docker shows it.
                    Changed { path: format!("/{}", String::from_utf8_lossy(path.as_bytes())), kind }
                });
                answer.changes = Some(changes.collect());
            }
            Message::DiffSize { id, parent } => {
                answer.size = Some(graph.diff_size(&id, parent.as_deref())?);
            }
            Message::Diff { .. } => {
                return Err(Error::new(Code::Invalid, "tell the difference", "its answer is no JSON"));
            }
        }
        Ok(answer)
    }

    fn init(&self, home: &str, options: &[String], mapped: bool) -> Result<()> {
        let refuse = |reason: String, hint: &str| {
            Err(Error::new(Code::Unsupported, "serve this docker daemon", reason).with_hint(hint))
        };
        if mapped {
            return refuse(
                "its files would have to belong to other users than their archives say".into(),
                "start dockerd without userns-remap",
            );
        }
        if let Some(option) = options.first() {
            return refuse(
                format!("there is no storage option '{}'", option.escape_debug()),
                "start dockerd without --storage-opt; options are given to `vellum serve`",
            );
        }
        self.graph().record_home(home)
    }
}

/// An error with its causes and what to do, in one line: all that docker shows.
pub(super) fn told(error: &Error) -> String {
    let mut out = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        out.push_str(": ");
        out.push_str(&cause.to_string());
        next = cause.source();
    }
    if let Some(hint) = error.hint() {
        out.push_str(" (");
        out.push_str(hint);
        out.push(')');
    }
    out
}

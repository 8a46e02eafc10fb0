use crate::cli::Global;
use crate::context;
use crate::failure::{Result, usage};
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use vellum_server::{Config, Door, DoorKind};
use vellum_store::OpenOptions;

/// Serve container engines: containerd, and docker up to 27
///
/// `serve containerd` is a proxy snapshotter for containerd, and through it for Docker from 29 on, nerdctl, BuildKit and Kubernetes. `serve docker` is a
/// graph-driver plugin for Docker up to 27. `serve --config FILE` serves several at once, with different names and drivers. Sample
/// configurations of the engines are in docs/plug-in.md.
///
/// Ends well on SIGTERM. Containers go on without the server, and it goes on where it was when it is started again. Sockets may come from systemd
/// (socket activation), which is also told when the server is ready. Only root may connect. The log goes to standard error; the variable VELLUM_LOG
/// says what it has, as in `VELLUM_LOG=debug`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Serve {
    #[command(subcommand)]
    engine: Option<Engine>,
    /// Serve what the file says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Engine {
    /// Be a proxy snapshotter of containerd
    Containerd(Containerd),
    /// Be a graph-driver plugin of Docker up to 27
    Docker(Docker),
}

#[derive(Debug, Args)]
struct Containerd {
    #[command(flatten)]
    door: DoorArgs,
    /// Take layers that the store's own images have, instead of fetching and unpacking them once more
    ///
    /// containerd then does not have the blobs of such layers, and cannot export or push their images.
    #[arg(long)]
    share_images: bool,
}

#[derive(Debug, Args)]
struct Docker {
    #[command(flatten)]
    door: DoorArgs,
}

#[derive(Debug, Args)]
struct DoorArgs {
    /// The socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Whose snapshots these are, when several servers share a store
    #[arg(long, value_name = "NAME", default_value = "vellum")]
    name: String,
    /// Answer Prometheus at this address, under /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

impl Serve {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let root = context::root(global)?;
        let config = match (&self.engine, &self.config) {
            (None, Some(file)) => Config::read(file, &root, global.driver.as_deref())?,
            (Some(Engine::Containerd(engine)), None) => {
                let door = engine.door.door(DoorKind::Containerd, global, root);
                let doors = vec![Door { share_images: engine.share_images, ..door }];
                Config { doors, metrics: engine.door.metrics }
            }
            (Some(Engine::Docker(engine)), None) => {
                let doors = vec![engine.door.door(DoorKind::Docker, global, root)];
                Config { doors, metrics: engine.door.metrics }
            }
            _ => {
                return Err(usage(
                    "say which engine to serve (`containerd` or `docker`), or give --config FILE",
                ));
            }
        };
        context::must_be_root("serve container engines")?;
        self.begin_log();
        Ok(vellum_server::serve(&config, |root| {
            let worker = vec![OsString::from(crate::workers::TRASH), root.into()];
            OpenOptions { worker: Some(worker), ..OpenOptions::new(root) }
        })?)
    }

    fn begin_log(&self) {
        let filter = tracing_subscriber::EnvFilter::builder()
            .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
            .with_env_var("VELLUM_LOG")
            .from_env_lossy();
        let log =
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).with_target(false);
        match self.log_format {
            LogFormat::Text => log.with_ansi(false).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
    }
}

impl DoorArgs {
    fn door(&self, kind: DoorKind, global: &Global, root: PathBuf) -> Door {
        let usual = Door::new(kind, root);
        Door {
            name: self.name.clone(),
            socket: self.socket.clone().unwrap_or(usual.socket),
            driver: global.driver.clone(),
            ..usual
        }
    }
}

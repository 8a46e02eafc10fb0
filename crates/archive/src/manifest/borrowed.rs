//! Files of the layers below that a layer has copies of.

use super::plan::{Plan, key, parents};
use super::verify::Open;
use super::{Entry, Facts, Reader, What};
use crate::target::LayerPath;
use std::collections::HashMap;
use std::io;

/// What a layer must have of files of the layers below to which it has hard links: joining copied them into its folder.
#[derive(Default)]
pub(super) struct Borrowed {
    /// Paths of this layer, and what they are links to.
    links: Vec<(LayerPath, LayerPath)>,
}

impl Borrowed {
    /// The links of the layer's own manifest that led to names which it had not brought.
    pub(super) fn of(plan: &Plan, open: Open<'_>) -> io::Result<Self> {
        let mut links = Vec::new();
        for (index, entry) in (0..).zip(Reader::new(open()?)?) {
            let entry: Entry = entry?;
            let Some(expected) = plan.expected.get(&key(entry.path.as_bytes())) else { continue };
            if let What::HardLink(to) = &expected.what
                && expected.index == index
                && !plan.is_hidden(entry.path.as_bytes(), index)
            {
                links.push((entry.path, to.clone()));
            }
        }
        Ok(Self { links })
    }

    /// Expects at the links, and at the names below that they lead to, what the layers below have recorded.
    pub(super) fn expect(self, plan: &mut Plan, below: &[Open<'_>]) -> io::Result<()> {
        if self.links.is_empty() || below.is_empty() {
            return Ok(());
        }
        let (mut lower, mut index) = (Plan::default(), 0);
        let mut copies = HashMap::new();
        for open in below {
            index = lower.read(&mut open()?, index, false)?;
        }
        for (path, to) in self.links {
            let Some((what, facts)) = lower.file(&to) else { continue };
            // All links to one name are one copy. Records of the layer's own are numbered from the other end.
            let next = u64::MAX - copies.len() as u64;
            let file = *copies.entry(to.clone()).or_insert(next);
            plan.linked.insert(file);
            if let Some(link) = plan.expected.get_mut(&key(path.as_bytes())) {
                (link.what, link.facts, link.file) = (what.clone(), facts, file);
            }
            // The name below is there too, unless the layer hides it; so are directories that it lies in.
            for dir in parents(to.as_bytes()) {
                plan.allow(dir, What::ImpliedDir, Facts::default(), file);
            }
            plan.allow(to.as_bytes(), what, facts, file);
        }
        Ok(())
    }
}

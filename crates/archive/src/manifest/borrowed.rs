//! Files of the layers below that a layer has copies of.

use super::verify::{Open, Plan, key, parents};
use super::{Entry, Facts, Reader, What};
use crate::target::LayerPath;
use std::io;

/// What a layer must have of files of the layers below to which it has hard links: joining copied them into its folder.
#[derive(Default)]
pub(super) struct Borrowed {
    /// Paths of this layer, and what they are links to.
    links: Vec<(LayerPath, LayerPath)>,
}

impl Borrowed {
    /// The links of the layer's own manifest that lead to names which it does not bring.
    pub(super) fn of(plan: &Plan, open: Open<'_>) -> io::Result<Self> {
        let mut links = Vec::new();
        for (index, entry) in (0..).zip(Reader::new(open()?)?) {
            let Entry { path, what: What::HardLink(to), .. } = entry? else { continue };
            let last = plan.expected.get(&key(path.as_bytes())).is_some_and(|e| e.index == index);
            let brings = plan.expected.get(&key(to.as_bytes())).is_some_and(|e| e.what != What::Whiteout);
            if last && !brings && !plan.is_hidden(path.as_bytes(), index) {
                links.push((path, to));
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
        for open in below {
            index = lower.read(&mut open()?, index, false)?;
        }
        for (path, to) in self.links {
            let Some((what, facts)) = lower.file(&to) else { continue };
            if let Some(link) = plan.expected.get_mut(&key(path.as_bytes())) {
                (link.what, link.facts, link.same_as) = (what.clone(), facts, Some(to.clone()));
            }
            // The name below is there too, unless the layer hides it; so are directories that it lies in.
            for dir in parents(to.as_bytes()) {
                plan.allow(dir, What::ImpliedDir, Facts::default());
            }
            plan.allow(to.as_bytes(), what, facts);
        }
        Ok(())
    }
}

use crate::cli::{Format, Global};
use crate::context;
use crate::failure::{Failure, Result};
use crate::output::Out;
use crate::progress::Bars;
use clap::Args;
use vellum_store::{FINDINGS, Finding, FindingKind, Store};

/// Compare the store with what it should be
///
/// Looks at everything: the catalog, each layer's files against its recorded manifest, kept blobs. A finding has an id that
/// never changes its meaning (`--list` tells all). A damaged layer of an image is mended by loading the image again, or by
/// `--repair` where its blob was kept; until then no container is made of it, and `mount` warns. What killed commands left behind is cleaned up and is no finding.
///
/// Exits with 0 when all is well or was repaired, with 1 when a finding is left.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Mend what can be mended; damaged layers are unpacked again where their blobs are at hand
    #[arg(long)]
    repair: bool,
    /// List all findings there can be, and what they mean
    #[arg(long, conflicts_with = "repair")]
    list: bool,
    #[command(flatten)]
    format: Format,
}

impl Check {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let mut out = Out::new();
        if self.list {
            if self.format.json {
                out.json(&FINDINGS)?;
                return out.finish();
            }
            let line = |kind: &FindingKind| [kind.id, kind.meaning, kind.repair].map(str::to_owned).to_vec();
            out.table(&["FINDING", "MEANING", "WHAT --repair DOES"], FINDINGS.iter().map(line).collect())?;
            return out.finish();
        }
        let findings = self.findings(global)?;
        let left = findings.iter().filter(|finding| finding.repaired.is_none()).count();
        if self.format.json {
            out.json(&findings)?;
        } else {
            for finding in &findings {
                tell(finding, &mut out)?;
            }
            out.line(match (findings.len(), left) {
                (0, _) => "The store is sound.".to_owned(),
                (all, 0) => format!("{} repaired.", crate::human::count(all, "finding")),
                (_, left) => format!("{} left.", crate::human::count(left, "finding")),
            })?;
        }
        out.finish()?;
        if left == 0 { Ok(()) } else { Err(Failure::Told(1)) }
    }

    fn findings(&self, global: &Global) -> Result<Vec<Finding>> {
        let options = context::options_inside(global)?;
        let bars = Bars::new(false, None);
        let findings = Store::check_at(&options, self.repair, &bars);
        bars.clear();
        findings.map_err(Failure::from)
    }
}

fn tell(finding: &Finding, out: &mut Out) -> Result<()> {
    let path = finding.path.as_ref().map(|path| format!(" {path}")).unwrap_or_default();
    out.line(format_args!("{} {}{path}: {}", finding.id, finding.object, finding.detail))?;
    if let Some(repaired) = &finding.repaired {
        out.line(format_args!("  repaired: {repaired}"))?;
    }
    if let Some(reason) = &finding.not_repaired {
        out.line(format_args!("  not repaired: {reason}"))?;
    }
    if let (None, Some(hint)) = (&finding.repaired, &finding.hint) {
        out.line(format_args!("  hint: {hint}"))?;
    }
    Ok(())
}

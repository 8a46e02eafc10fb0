//! The lines of the table.

mod docker;
mod flat;
mod life;
mod load;
mod serve;
mod snapshots;
mod within;

use crate::run::{Cost, Error, measure};
use crate::{Arguments, images};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One line: a name, and what measures it.
pub(crate) struct Line {
    /// What `--only` looks at.
    pub name: &'static str,
    /// The figures.
    pub measure: fn(&Bench) -> Result<Vec<Figures>, Error>,
}

/// All lines, in the order of the table.
pub(crate) const ALL: &[Line] = &[
    Line { name: "load real, gzipped OCI", measure: load::real },
    Line { name: "load real, docker archive", measure: load::docker },
    Line { name: "load deep", measure: load::deep },
    Line { name: "load wide", measure: load::wide },
    Line { name: "save real", measure: load::save },
    Line { name: "check real", measure: load::check },
    Line { name: "container's life", measure: life::life },
    Line { name: "in process", measure: within::create_and_mount },
    Line { name: "200 containers in a row", measure: life::row },
    Line { name: "diff and commit", measure: life::diff },
    Line { name: "remove", measure: life::remove },
    Line { name: "docker build", measure: docker::build },
    Line { name: "first write to 1 GiB", measure: life::first_write },
    Line { name: "flattened layers", measure: flat::layers },
    Line { name: "flattened load", measure: flat::load },
    Line { name: "flattened page cache", measure: flat::cache },
    Line { name: "flattened space", measure: flat::space },
    Line { name: "btrfs containers", measure: snapshots::containers },
    Line { name: "btrfs load", measure: snapshots::load },
    Line { name: "containerd's socket", measure: serve::socket },
    Line { name: "docker 28 builds", measure: serve::docker },
    Line { name: "containerd 2 unpacks", measure: serve::unpack },
];

/// What a figure should be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    /// At most this multiple of the figure beside it.
    Ratio(f64),
    /// At most this, in the figure's unit.
    Value(f64),
    /// Shown for comparison.
    None,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(most) => write!(f, "x {most}"),
            Self::Value(most) => write!(f, "{most}"),
            Self::None => f.write_str("-"),
        }
    }
}

/// One figure of a line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// What was measured, and beside what.
    pub what: String,
    /// `s`, `ms`, `us`, `MiB`, or what is counted.
    pub unit: &'static str,
    /// Vellum's median.
    pub vellum: f64,
    /// The other's median.
    pub beside: Option<f64>,
    /// What it should be.
    pub goal: Goal,
}

impl Figures {
    /// A figure beside another.
    pub(crate) fn ratio_of(
        what: impl Into<String>,
        unit: &'static str,
        vellum: f64,
        beside: f64,
        goal: f64,
    ) -> Self {
        Self { what: what.into(), unit, vellum, beside: Some(beside), goal: Goal::Ratio(goal) }
    }

    /// A figure of its own.
    pub(crate) fn value(what: impl Into<String>, unit: &'static str, vellum: f64, goal: Goal) -> Self {
        Self { what: what.into(), unit, vellum, beside: None, goal }
    }

    /// Vellum's over the other's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.beside.map(|beside| self.vellum / beside)
    }

    /// Whether the goal is met.
    pub(crate) fn met(&self) -> bool {
        match self.goal {
            Goal::Ratio(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Goal::Value(most) => self.vellum <= most,
            Goal::None => true,
        }
    }

    /// A value with its unit.
    pub(crate) fn shown(&self, value: f64) -> String {
        match self.unit {
            "s" => format!("{value:.2} s"),
            unit => format!("{value:.1} {unit}"),
        }
    }
}

/// What all lines need.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    vellum: PathBuf,
    work: PathBuf,
    real: Option<PathBuf>,
    deep: Option<PathBuf>,
    wide: Option<PathBuf>,
    systems: Option<PathBuf>,
    fs: String,
    runs: usize,
}

impl Bench {
    /// Checks the arguments and makes the work folder.
    pub(crate) fn new(arguments: &Arguments) -> Result<Self, Error> {
        let vellum = std::path::absolute(&arguments.vellum).map_err(Error::at("make a path absolute"))?;
        if !vellum.is_file() {
            return Err(Error::Missing(format!(
                "{} (build it with cargo build --release)",
                vellum.display()
            )));
        }
        let work = arguments.work.clone();
        std::fs::create_dir_all(&work).map_err(Error::at(format!("create {}", work.display())))?;
        let bench = Self {
            vellum,
            work,
            real: arguments.real.clone(),
            deep: arguments.deep.clone(),
            wide: arguments.wide.clone(),
            systems: arguments.systems.clone(),
            fs: arguments.fs.clone(),
            runs: arguments.runs.max(1),
        };
        bench.clean()?;
        Ok(bench)
    }

    /// Facts that the report begins with.
    pub(crate) fn machine(&self) -> Vec<(String, String)> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")
                    .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
            })
            .unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let below = measure(Command::new("findmnt").args(["-no", "FSTYPE", "-T"]).arg(&self.work));
        let below = below.map_or_else(|_| "unknown".to_owned(), |(_, text)| text.trim().to_owned());
        let kind = match &*self.fs {
            "here" => below,
            fs => format!("{fs}, made anew for each line in a file on {below} (loop device, direct I/O)"),
        };
        vec![
            ("processor".into(), format!("{model}, {cores} cores")),
            ("kernel".into(), read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("file system".into(), kind),
            ("runs".into(), self.runs.to_string()),
        ]
    }

    /// Makes the file system that a line works on.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        if self.fs == "here" {
            return Ok(());
        }
        crate::run::tool(&format!("mkfs.{}", self.fs))?;
        crate::run::shell(
            r#"truncate -s 60G "$1/disk"; mkfs."$2" -q "$1/disk"; mkdir -p "$1/out"
            loop=$(losetup --find --show --direct-io=on "$1/disk")
            mount "$loop" "$1/out" && losetup --detach "$loop" || { losetup --detach "$loop"; false; }"#,
            &[&self.work, Path::new(&self.fs)],
        )?;
        Ok(())
    }

    /// A folder for outputs, new for each name and run.
    fn output(&self, name: &str, run: usize) -> Result<PathBuf, Error> {
        let folder = self.work.join("out").join(format!("{name}-{run}"));
        std::fs::create_dir_all(&folder).map_err(Error::at(format!("create {}", folder.display())))?;
        Ok(folder)
    }

    /// Removes all outputs, and waits until that is on the disk.
    pub(crate) fn clean(&self) -> Result<(), Error> {
        crate::run::shell(
            r#"for m in $(findmnt -rno TARGET | grep -E "^$1/out(/|\$)" | sort -r); do umount "$m"; done
            rm -rf --one-file-system "$1/out" "$1/disk"; sync"#,
            &[&self.work],
        )?;
        Ok(())
    }

    fn deep(&self) -> Result<images::Image, Error> {
        let layout = self.deep.as_ref().ok_or_else(|| Error::Missing("--deep LAYOUT".into()))?;
        images::prepare(&self.work.join("deep"), layout)
    }

    fn wide(&self) -> Result<images::Image, Error> {
        let layout = self.wide.as_ref().ok_or_else(|| Error::Missing("--wide LAYOUT".into()))?;
        images::prepare(&self.work.join("wide"), layout)
    }

    fn real(&self) -> Result<images::Image, Error> {
        let layout = self.real.as_ref().ok_or_else(|| Error::Missing("--real LAYOUT".into()))?;
        images::prepare(&self.work.join("real"), layout)
    }

    fn systems(&self) -> Result<&Path, Error> {
        self.systems.as_deref().ok_or_else(|| Error::Missing("--systems FOLDER".into()))
    }

    /// `vellum` with a store below `folder`.
    fn vellum(&self, folder: &Path) -> Command {
        self.vellum_with("overlay", folder)
    }

    /// The same with a driver.
    fn vellum_with(&self, driver: &str, folder: &Path) -> Command {
        let mut command = Command::new(&self.vellum);
        command.arg("--root").arg(folder.join("store")).args(["--driver", driver]);
        command
    }

    /// Measures each of `sides` in turn, as many times as there are runs, and gives each side's median.
    fn alternate<const N: usize>(
        &self,
        mut sides: [&mut dyn FnMut(usize) -> Result<Cost, Error>; N],
    ) -> Result<[Cost; N], Error> {
        let mut costs: [Vec<Cost>; N] = std::array::from_fn(|_| Vec::new());
        for run in 0..self.runs {
            for (side, costs) in sides.iter_mut().zip(&mut costs) {
                // What another side left unwritten is not this one's to wait for.
                rustix::fs::sync();
                costs.push(side(run)?);
            }
        }
        Ok(costs.map(|mut all| median(&mut all)))
    }
}

/// The middle one by wall time, with the middle processor time and the largest peak.
fn median(costs: &mut [Cost]) -> Cost {
    let middle = costs.len() / 2;
    costs.sort_by_key(|cost| cost.wall);
    let wall = costs[middle].wall;
    costs.sort_by_key(|cost| cost.cpu);
    let cpu = costs[middle].cpu;
    Cost { wall, cpu, peak_kib: costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0) }
}

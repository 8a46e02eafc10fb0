//! Docker with Vellum behind it, beside docker with its own storage drivers.

use super::{Bench, Figures, Goal};
use crate::docker::Docker;
use crate::run::{Cost, Error, measure};
use std::path::Path;

/// Steps that change nothing of the files, between two that do: each is a container that is made, compared, committed and removed.
const STEPS: usize = 20;

/// A Dockerfile of twenty ENV and ARG steps between two COPY steps, on the base of the real image.
pub(super) fn build(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    let context = bench.output("context", 0)?;
    let steps: String = (0..STEPS)
        .map(|n| if n % 2 == 0 { format!("ENV e{n}={n}\n") } else { format!("ARG a{n}={n}\n") })
        .collect();
    let file = format!("FROM bench:latest\nCOPY one /one\n{steps}COPY two /two\n");
    for (name, text) in [("Dockerfile", &*file), ("one", "one\n"), ("two", "two\n")] {
        let path = context.join(name);
        std::fs::write(&path, text).map_err(Error::at(format!("write {}", path.display())))?;
    }
    let place = |name: &str| bench.output(name, 0);
    let vellum = Docker::with_plugin(&place("dv")?, bench.vellum(&place("vellum")?))?;
    let overlay2 = Docker::start(&place("do")?, "overlay2")?;
    let vfs = Docker::start(&place("df")?, "vfs")?;
    for docker in [&vellum, &overlay2, &vfs] {
        // The base alone: among the layers above is one that docker's own drivers cannot unpack.
        measure(docker.words(&["import"]).arg(image.plain.join("000.tar")).arg("bench:latest"))?;
        once(docker, &context)?;
    }
    let [vellum, overlay2, vfs] = bench.alternate([
        &mut |_| once(&vellum, &context),
        &mut |_| once(&overlay2, &context),
        &mut |_| once(&vfs, &context),
    ])?;
    let seconds = |cost: Cost| cost.wall.as_secs_f64();
    let what = "docker build, 20 ENV and ARG steps between two COPY";
    let over = |name: &str, other| Figures {
        goal: Goal::None,
        ..Figures::ratio_of(format!("{what}, beside {name}"), "s", seconds(vellum), seconds(other), 1.0)
    };
    Ok(vec![over("overlay2", overlay2), over("vfs", vfs)])
}

fn once(docker: &Docker, context: &Path) -> Result<Cost, Error> {
    let build = ["build", "--no-cache", "--network", "host", "-q", "-t", "built"];
    Ok(measure(docker.words(&build).arg(context))?.0)
}

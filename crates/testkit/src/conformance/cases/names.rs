//! Names that trip careless code.

use super::case;
use crate::conformance::{Case, Lab, Outcome};
use crate::tree::Tree;

pub(super) const CASES: &[Case] = &[
    case!(
        hostile_names,
        "names with blanks, line ends, colons, commas, backslashes, quotes, and such as options have"
    ),
    case!(longest_names, "names of 255 bytes, in directories of such names"),
    case!(not_unicode, "names that are not UTF-8"),
    case!(
        like_the_drivers_own,
        "names that the driver's own files have: diff, work, lower, link, merged, .wh"
    ),
    case!(many_in_one, "some thousand names in one directory"),
];

fn named(lab: &Lab<'_>, names: &[Vec<u8>]) -> Outcome {
    let mut first = Tree::new();
    for name in names {
        first = first.dir([b"d-", name.as_slice()].concat(), 0o755);
        first = first.file([b"d-", name.as_slice(), b"/", name].concat(), name, 0o644);
        first = first.symlink([b"l-", name.as_slice()].concat(), name);
    }
    let mut second = Tree::new();
    for name in names {
        second = second.file([b"d-", name.as_slice(), b"/", name].concat(), "changed", 0o600);
    }
    let gone =
        names.first().map(|name| String::from_utf8_lossy(&[b"l-", name.as_slice()].concat()).into_owned());
    lab.stack(&[&|h| h.tree(&first), &|h| h.tree(&second), &|h| {
        gone.as_deref().map_or(Ok(()), |gone| h.remove(gone))
    }])?;
    Ok(())
}

fn hostile_names(lab: &Lab<'_>) -> Outcome {
    let names = [
        " ",
        "a b",
        "line\nend",
        "tab\t",
        "co:lon",
        "com,ma",
        "back\\slash",
        "quo\"te",
        "quo'te",
        "-rf",
        "--",
        "*",
        "?",
        "~",
        "$HOME",
        "%s",
        "upperdir=x",
        "...",
        ".hidden",
        "\u{7f}",
        "\u{1}",
        "é",
        "🜁",
        "CON",
    ];
    named(lab, &names.map(|name| name.as_bytes().to_vec()))
}

fn longest_names(lab: &Lab<'_>) -> Outcome {
    let long = "n".repeat(255);
    let tree = Tree::new()
        .dir(&long, 0o755)
        .dir(format!("{long}/{long}"), 0o755)
        .file(format!("{long}/{long}/{long}"), "x", 0o644)
        .symlink(format!("{long}/link"), format!("{long}/{long}"));
    let path = format!("{long}/{long}/{long}");
    lab.stack(&[&|h| h.tree(&tree), &|h| h.file(&path, "y", 0o644), &|h| {
        h.remove(&format!("{long}/{long}"))
    }])?;
    Ok(())
}

fn not_unicode(lab: &Lab<'_>) -> Outcome {
    named(lab, &[b"plain".to_vec(), b"caf\xe9".to_vec(), b"\xff\xfe".to_vec(), b"\x80".to_vec()])
}

fn like_the_drivers_own(lab: &Lab<'_>) -> Outcome {
    let names =
        ["diff", "work", "lower", "link", "merged", "upper", "l", "layer", "tree", "trusted.overlay.opaque"];
    named(lab, &names.map(|name| name.as_bytes().to_vec()))
}

fn many_in_one(lab: &Lab<'_>) -> Outcome {
    let mut tree = Tree::new().dir("d", 0o755);
    for n in 0..3000 {
        tree = tree.file(format!("d/{n}"), "", 0o644);
    }
    lab.stack(&[&|h| h.tree(&tree), &|h| {
        (0..3000).step_by(7).try_for_each(|n| h.remove(&format!("d/{n}")))
    }])?;
    Ok(())
}

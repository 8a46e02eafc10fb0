//! Names.

use vellum_archive::target::LayerPath;
use vellum_types::{ContainerName, DiffId, Digest, ImageName, LayerId, Platform};

/// What is accepted says itself in a form that is accepted and means the same.
fn round<T: std::str::FromStr + std::fmt::Display + PartialEq + std::fmt::Debug>(
    text: &str,
) -> Option<String> {
    let value: T = text.parse().ok()?;
    let said = value.to_string();
    let again: Option<T> = said.parse().ok();
    assert_eq!(again.as_ref(), Some(&value), "{text:?} says {said:?}");
    Some(said)
}

pub(crate) fn run(data: &[u8]) {
    if let Ok(path) = LayerPath::new(data) {
        assert!(
            path.names().all(|name| name != b"." && name != b".." && !name.is_empty() && name.len() <= 255)
        );
        assert!(!data.contains(&0) && data.len() <= 4095);
        assert!(!path.to_string().chars().any(char::is_control), "a terminal's escapes");
        let mut rebuilt = LayerPath::root();
        for name in path.names() {
            rebuilt = rebuilt.join(name).expect("what was accepted as a part");
        }
        assert_eq!(rebuilt, path);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(said) = round::<ImageName>(text) {
        assert!(!said.chars().any(|c| c.is_control() || c.is_whitespace()));
        let name: ImageName = text.parse().expect("just parsed");
        assert_eq!(name.familiar().parse(), Ok(name), "the short form means the same");
    }
    // These become names of files.
    for said in
        [round::<ContainerName>(text), round::<Digest>(text), round::<DiffId>(text), round::<LayerId>(text)]
    {
        assert!(said.is_none_or(|said| !said.contains(['/', '\0']) && said != "." && said != ".."));
    }
    round::<Platform>(text);
}

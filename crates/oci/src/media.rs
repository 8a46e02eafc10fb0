//! Media types of images.

/// `index.json`, and an index of platforms.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A configuration.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer; `+gzip` or `+zstd` behind it say how it is compressed.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The annotation by which containerd names an image: the whole name.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The specification's annotation for what an image is called in a layout: a tag, or a whole name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a descriptor says it points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
    Config,
    Layer,
    /// A signature, an attestation, a chart: not for us.
    Other,
}

pub(crate) fn kind(media_type: &str) -> Kind {
    // Parameters (`; charset=utf-8`) do not change what it is.
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    match media_type {
        OCI_INDEX | DOCKER_LIST => Kind::Index,
        OCI_MANIFEST | DOCKER_MANIFEST => Kind::Manifest,
        OCI_CONFIG | DOCKER_CONFIG => Kind::Config,
        other if is_layer(other) => Kind::Layer,
        _ => Kind::Other,
    }
}

fn is_layer(media_type: &str) -> bool {
    const STEMS: [&str; 4] = [
        OCI_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    STEMS.iter().any(|stem| {
        media_type
            .strip_prefix(stem)
            .is_some_and(|rest| matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_told_apart() {
        assert_eq!(kind(DOCKER_LIST), Kind::Index);
        assert_eq!(kind("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), Kind::Manifest);
        assert_eq!(kind("application/vnd.docker.image.rootfs.diff.tar.gzip"), Kind::Layer);
        assert_eq!(kind("application/vnd.oci.image.layer.v1.tar+zstd"), Kind::Layer);
        assert_eq!(kind("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), Kind::Other);
        assert_eq!(kind(""), Kind::Other);
    }
}

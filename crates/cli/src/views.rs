//! What lists and inspections show with `--json`. Their fields are what scripts rely on, so they are named here and nowhere else.

use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;
use vellum_archive::target::Usage;
use vellum_store::{BlobFacts, ContainerRow, ImageRow, LayerRow, SavePointRow};
use vellum_types::{ChainId, ContainerId, ContainerName, DiffId, ImageId, ImageName, LayerId, Platform};

/// A document with a conversion from a row of the store, each field with where it comes from.
macro_rules! views {
    ($($(#[$doc:meta])* $name:ident of $row:ident { $($(#[$how:meta])* $field:ident: $type:ty = $($from:ident).+,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        pub(crate) struct $name {
            $($(#[$how])* $field: $type,)*
        }

        impl From<$row> for $name {
            fn from(row: $row) -> Self {
                Self { $($field: row.$($from).+,)* }
            }
        }
    )*};
}

views! {
    /// An image.
    Image of ImageRow {
        id: ImageId = id,
        names: Vec<ImageName> = names,
        created: Option<Timestamp> = created,
        platform: Option<Platform> = platform,
        size: u64 = size,
        shared: u64 = shared,
        unique: u64 = unique,
        layers: usize = layers,
        containers: usize = containers,
    }

    /// A layer of an image.
    Layer of LayerRow {
        id: LayerId = id,
        parent: Option<LayerId> = parent,
        diff_id: DiffId = diff_id,
        chain_id: ChainId = chain_id,
        bytes: u64 = size.bytes,
        inodes: u64 = size.inodes,
        tar_bytes: u64 = tar_size,
        blob: Option<BlobFacts> = blob,
        created: Timestamp = created,
    }

    /// A container.
    Container of ContainerRow {
        id: ContainerId = id,
        name: Option<ContainerName> = name,
        image: ImageId = image,
        image_name: Option<ImageName> = image_name,
        driver: String = driver,
        layer: LayerId = layer,
        created: Timestamp = created,
        #[serde(serialize_with = "vellum_types::optional_path_as_text")]
        mounted: Option<PathBuf> = mounted,
        size: Option<Usage> = size,
        save_points: usize = save_points,
    }

    /// A save point of a container.
    SavePoint of SavePointRow {
        name: ContainerName = name,
        container: ContainerId = container,
        layer: LayerId = layer,
        created: Timestamp = created,
        bytes: u64 = size.bytes,
        inodes: u64 = size.inodes,
    }
}

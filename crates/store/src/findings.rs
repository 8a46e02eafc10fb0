//! Everything that `check` can find, by id. Ids are stable: scripts and bug reports rely on them, and none is used again for something else.

/// What `check` can find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FindingKind {
    /// The id.
    pub id: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What `--repair` does about it.
    pub repair: &'static str,
}

macro_rules! findings {
    ($($name:ident = $id:literal, $meaning:literal, $repair:literal;)*) => {
        $(pub(crate) const $name: &str = $id;)*
        /// What `check` can find.
        pub const FINDINGS: &[FindingKind] =
            &[$(FindingKind { id: $id, meaning: $meaning, repair: $repair }),*];
    };
}

findings! {
    CATALOG_UNSOUND = "VLM-C001", "the catalog's file is damaged", "the catalog is rebuilt from what lies on disk";
    CATALOG_LOST = "VLM-C002", "the catalog is missing", "the catalog is rebuilt from what lies on disk";
    CATALOG_DROPPED = "VLM-C003", "something could not be taken over into the rebuilt catalog",
        "none: load the image again";
    CATALOG_LOG = "VLM-C004", "a bit of the catalog's log was flipped", "flipped back";
    IDENTITY = "VLM-S001", "the file store.json is missing, damaged or wrong", "written anew from the catalog";
    LAYER_LOST = "VLM-L001", "a layer of the catalog is not on disk", "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_STRUCTURE = "VLM-L002", "the driver's own files of a layer are damaged",
        "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_RELATION = "VLM-L003", "the driver and the catalog disagree about a layer's kind or parent",
        "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_CONTENT = "VLM-L004", "a file of a layer is not what was unpacked",
        "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_MANIFEST = "VLM-L005", "a layer's manifest is missing or damaged, so that its files cannot be verified",
        "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_RECIPE = "VLM-L006", "a layer's recipe is missing or damaged, so that its tar cannot be given back",
        "unpacked again, if its blob was kept; else loading the image does it";
    LAYER_RECORD = "VLM-L007", "the file layer.json of a layer is missing, damaged or wrong",
        "written anew from the catalog";
    CONFIG_LOST = "VLM-I001", "the configuration of an image is missing", "none: load the image again";
    CONFIG_WRONG = "VLM-I002", "the configuration of an image does not have its digest",
        "none: load the image again";
    IMAGE_LAYERS = "VLM-I003", "an image's layers are not those of its configuration", "none: load the image again";
    IMAGE_RECORD = "VLM-I004", "the file beside an image is missing or damaged", "written anew from the catalog";
    BLOB_LOST = "VLM-B001", "a kept blob is missing", "forgotten: the layer itself is there";
    BLOB_WRONG = "VLM-B002", "a kept blob does not have its digest", "deleted and forgotten";
}

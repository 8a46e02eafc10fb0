//! What a driver can do, as data, each with its reason.

use std::fmt;

/// Something a driver can or cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ability {
    /// A layer on a parent is made in constant time.
    InstantCreate,
    /// The difference to the own parent costs what changed, not the size of the trees.
    NativeDiff,
    /// A layer's size can be limited.
    Quota,
    /// The first write to a file, and save points, share blocks instead of copying.
    Reflink,
    /// Works for a user without privileges.
    Rootless,
    /// The longest chain; a [`Support::Limit`].
    MaxLayers,
    /// Containers that read the same file of an image read the same memory.
    SharesPageCache,
    /// A file that several layers have is stored once, so that what a layer takes changes when others go.
    StoresFilesOnce,
    /// Layers can be unpacked without their parent and joined at commit.
    ParallelUnpack,
    /// Mounts can be handed out as classic mount strings, to be performed by somebody else.
    ClassicMounts,
    /// Changing only a file's owner, mode, times or attributes does not copy its data.
    MetadataOnlyCopyUp,
    /// A directory of a lower layer can be renamed in place.
    DirectoryRename,
    /// The ACL of a lower layer's file can be changed before anything else of the file was.
    AclOfLowerFile,
    /// A container's writes can be made not durable on request.
    Volatile,
    /// Character devices 0:0 inside layers, which are an inner overlay's whiteouts, are kept: as devices, or as what an
    /// inner overlay takes for the same. Otherwise an archive that has one is refused.
    NestedWhiteouts,
}

/// Whether, or how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// It can.
    Yes,
    /// It cannot.
    No,
    /// Up to this number.
    Limit(u64),
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.pad("yes"),
            Self::No => f.pad("no"),
            Self::Limit(limit) => f.pad(&limit.to_string()),
        }
    }
}

/// One ability with its reason.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Capability {
    /// Which.
    pub ability: Ability,
    /// Whether.
    pub support: Support,
    /// Why, in words: `redirect_dir is followed by this kernel`.
    pub reason: String,
}

/// All abilities of a driver on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(transparent)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, ability: Ability, support: Support, reason: impl Into<String>) -> Self {
        self.0.retain(|c| c.ability != ability);
        self.0.push(Capability { ability, support, reason: reason.into() });
        self
    }

    /// Whether the driver can; what is not listed it cannot.
    pub fn has(&self, ability: Ability) -> bool {
        self.get(ability).is_some_and(|c| c.support != Support::No)
    }

    /// The number of a [`Support::Limit`].
    pub fn limit(&self, ability: Ability) -> Option<u64> {
        match self.get(ability)?.support {
            Support::Limit(limit) => Some(limit),
            _ => None,
        }
    }

    /// The entry itself.
    pub fn get(&self, ability: Ability) -> Option<&Capability> {
        self.0.iter().find(|c| c.ability == ability)
    }

    /// All, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.iter()
    }
}

//! The overlay driver: one overlayfs mount a container.

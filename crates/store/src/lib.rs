//! Layers, images and containers over the drivers: durable, shared, checked.

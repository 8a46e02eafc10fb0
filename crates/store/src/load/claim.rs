//! Who unpacks a layer that several want.

use super::{Job, Load};
use crate::Result;
use crate::catalog::layers::{Role, State};
use crate::catalog::{Durability, intents, layers};
use vellum_types::LayerId;

/// The answer to a claim.
pub(super) enum Claim {
    /// The store has it; it is pinned.
    Ready(LayerId),
    /// This load unpacks it, under this id.
    Mine(LayerId),
    /// Another living operation is at it.
    Foreign,
}

/// What became of a layer that another operation stages.
pub(super) enum Watched {
    /// It is ready, and pinned.
    Ready(LayerId),
    /// It is still at it.
    AtWork,
    /// It failed or died.
    Gone,
}

impl Load<'_> {
    /// Finds out who unpacks the layer, and makes the intent if it is this load.
    pub(super) fn claim(&self, job: &Job<'_>, parent: Option<LayerId>) -> Result<Claim> {
        // Mostly the answer needs no writing.
        match self.claim_if_ready(job)? {
            Watched::AtWork => return Ok(Claim::Foreign),
            Watched::Ready(id) => return Ok(Claim::Ready(id)),
            Watched::Gone => {}
        }
        let store = self.store;
        let driver = store.driver.name();
        let (claim, dead) = store.catalog.write(Durability::Normal, |tx| {
            let mut dead = None;
            if let Some(layer) = layers::by_chain(tx, driver, &job.chain_id)? {
                if layer.state == State::Ready {
                    intents::pin(tx, self.owner.id, layer.id)?;
                    return Ok((Claim::Ready(layer.id), None));
                }
                let alive = match layer.owner {
                    Some(owner) => crate::locks::lives(&store.layout, owner)?,
                    None => false,
                };
                if alive {
                    return Ok((Claim::Foreign, None));
                }
                intents::abandon(tx, layer.id, self.owner.id)?;
                dead = Some(layer);
            }
            let chain = Some((&job.chain_id, &job.diff_id));
            let id = layers::stage(tx, driver, Role::Image, self.owner.id, parent, chain)?;
            Ok((Claim::Mine(id), dead))
        })?;
        store.finish_removal(dead.as_slice())?;
        Ok(claim)
    }

    /// Looks again at a layer that another operation stages.
    pub(super) fn claim_if_ready(&self, job: &Job<'_>) -> Result<Watched> {
        let store = self.store;
        let driver = store.driver.name();
        let found = store.catalog.read(|tx| layers::by_chain(tx, driver, &job.chain_id))?;
        match found {
            Some(layer) if layer.state == State::Ready => {
                let pinned = store.catalog.write(Durability::Normal, |tx| {
                    // It may have been collected since.
                    match layers::by_chain(tx, driver, &job.chain_id)? {
                        Some(now) if now.state == State::Ready => {
                            intents::pin(tx, self.owner.id, now.id)?;
                            Ok(Some(now.id))
                        }
                        _ => Ok(None),
                    }
                })?;
                Ok(pinned.map_or(Watched::Gone, Watched::Ready))
            }
            Some(layer) => match layer.owner {
                Some(owner) if crate::locks::lives(&store.layout, owner)? => Ok(Watched::AtWork),
                _ => Ok(Watched::Gone),
            },
            None => Ok(Watched::Gone),
        }
    }
}

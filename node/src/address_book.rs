//! Where the stores are. Store ids are for good, addresses are not.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::RwLock;
use proto::{StoreId, wire};

/// Store id → address and UUID; first from the founding record, then as PD tells.
#[derive(Default)]
pub struct AddressBook {
    stores: RwLock<BTreeMap<StoreId, wire::Store>>,
}

impl AddressBook {
    /// Where a store's gRPC door is; `None` when unknown, or when the store has lost its address to another one.
    pub fn address(&self, store: StoreId) -> Option<String> {
        self.stores.read().get(&store).map(|s| s.address.clone()).filter(|a| !a.is_empty())
    }

    /// The UUID of a store's data directory.
    pub fn uuid(&self, store: StoreId) -> Option<Bytes> {
        self.stores.read().get(&store).map(|s| s.uuid.clone())
    }

    /// All stores, by id.
    pub fn stores(&self) -> Vec<StoreId> {
        self.stores.read().keys().copied().collect()
    }

    /// Takes stores as PD (or a record) tells; whether anything is new.
    pub fn update(&self, told: &[wire::Store]) -> bool {
        let mut stores = self.stores.write();
        let mut news = false;
        for store in told {
            // The state of a store changes with every look; where it is does not.
            let store = wire::Store { state: 0, ..store.clone() };
            news |= stores.insert(StoreId(store.id), store.clone()).as_ref() != Some(&store);
        }
        news
    }

    /// All records, to remember them.
    pub fn records(&self) -> Vec<wire::Store> {
        self.stores.read().values().cloned().collect()
    }
}

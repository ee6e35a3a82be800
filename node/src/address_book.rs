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

    /// Takes stores as PD (or a record) tells; whether anything is new. What an earlier start of a store's process said
    /// does not replace what a later one said: PD may not have heard of it yet.
    pub fn update(&self, told: &[wire::Store]) -> bool {
        let mut stores = self.stores.write();
        let mut news = false;
        for store in told {
            let id = StoreId(store.id);
            if stores.get(&id).is_some_and(|known| known.boot_id > store.boot_id) {
                continue;
            }
            // The state of a store changes with every look; where it is does not.
            let store = wire::Store { state: 0, ..store.clone() };
            news |= stores.insert(id, store.clone()).as_ref() != Some(&store);
        }
        news
    }

    /// The data directory with this UUID answers (or asks) at `address` since its start `boot_id`; whether that is new.
    /// Unknown directories are left alone.
    pub fn seen_at(&self, uuid: &[u8], boot_id: u64, address: &str) -> bool {
        let mut stores = self.stores.write();
        match stores.values_mut().find(|s| s.uuid == uuid) {
            Some(store) if store.address != address && store.boot_id < boot_id => {
                store.address = address.into();
                store.boot_id = boot_id;
                true
            }
            _ => false,
        }
    }

    /// All records, to remember them.
    pub fn records(&self) -> Vec<wire::Store> {
        self.stores.read().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_start_of_a_store_says_where_it_is() {
        let store = |address: &str, boot_id| wire::Store {
            id: 2,
            address: address.into(),
            uuid: vec![2; 16].into(),
            boot_id,
            ..wire::Store::default()
        };
        let book = AddressBook::default();
        assert!(book.update(&[store("old:1", 1)]));
        assert!(book.seen_at(&[2; 16], 3, "new:1"));
        assert!(!book.seen_at(&[2; 16], 2, "old:1"), "a late answer");
        assert!(!book.seen_at(&[9; 16], 9, "other:1"), "an unknown directory");
        assert!(!book.update(&[store("old:1", 1)]), "PD has not heard of the move");
        assert_eq!(book.address(StoreId(2)).as_deref(), Some("new:1"));
        assert!(book.update(&[store("", 3)]), "another directory took the address over");
        assert_eq!(book.address(StoreId(2)), None);
    }
}

//! Which store listens where. Filled from the founding record and from PD's list of stores.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use proto::{StoreId, wire::Store};

/// Addresses of stores, read on every call and rarely changed.
#[derive(Debug, Default)]
pub struct AddressBook(ArcSwap<HashMap<StoreId, Arc<str>>>);

impl AddressBook {
    /// `host:port` of a store's gRPC door.
    pub fn address(&self, store: StoreId) -> Option<Arc<str>> {
        self.0.load().get(&store).cloned()
    }
    /// Takes over what `stores` say; stores it does not name stay.
    pub fn learn<'a>(&self, stores: impl IntoIterator<Item = &'a Store>) {
        let known = self.0.load();
        let mut changed = (**known).clone();
        for store in stores {
            if store.id != 0 && !store.address.is_empty() {
                changed.insert(StoreId(store.id), store.address.as_str().into());
            }
        }
        if changed != **known {
            self.0.store(Arc::new(changed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_addresses_win_and_others_stay() {
        let book = AddressBook::default();
        let store = |id, address: &str| Store { id, address: address.into(), ..Default::default() };
        book.learn(&[store(1, "a:1"), store(2, "b:1"), store(0, "nobody:1"), store(3, "")]);
        book.learn(&[store(2, "c:1")]);
        assert_eq!(book.address(StoreId(1)).as_deref(), Some("a:1"));
        assert_eq!(book.address(StoreId(2)).as_deref(), Some("c:1"));
        assert_eq!((book.address(StoreId(0)), book.address(StoreId(3))), (None, None));
    }
}

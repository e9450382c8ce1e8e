//! The location ledger: what was told of each disk agrees with what lies there.

use nuage_journal::{Receipt, ReceiptAct, Store, StoreEvent};

use super::{NODES, World, store_of};

impl World {
    /// A daemon writes down what its copy tells, unless the node goes down first.
    pub(super) fn note_receipts<'a>(
        &mut self,
        node: usize,
        events: impl Iterator<Item = &'a StoreEvent>,
    ) {
        let is_gone = self.nodes[node].medium.borrow().is_dead();
        for event in events {
            if let StoreEvent::Receipt(receipt) = event
                && !is_gone
            {
                self.note_receipt(node, receipt);
            }
        }
    }

    fn note_receipt(&mut self, node: usize, receipt: &Receipt) {
        if self.nodes[node].told.is_news(receipt) {
            self.outcome.receipts += 1;
            self.nodes[node].told.note(receipt);
        }
    }

    /// As daemons do each minute: what was told is compared with what the copy has.
    pub(super) fn compare_receipts(&mut self) {
        for node in 0..NODES {
            let Some(store) = store_of(&mut self.nodes[node].role) else {
                continue;
            };
            let present = Store::holdings(store);
            for receipt in self.nodes[node].told.missing(&present) {
                self.note_receipt(node, &receipt);
            }
        }
    }

    /// Every segment that lies on a disk has a receipt that has not expired, and no other has one; what a log segment's
    /// receipt says of the chain is the chain of the volume.
    pub(super) fn check_receipts(&mut self, head: usize) -> Result<(), String> {
        self.compare_receipts();
        for node in 0..NODES {
            let lies = self.nodes[node].medium.borrow().sealed();
            let told = self.nodes[node].told.present();
            let by_receipts = told.map(|told| (told.segment, (told.last_seq, told.chain)));
            let by_receipts: std::collections::BTreeMap<_, _> = by_receipts.collect();
            if lies != by_receipts {
                let segments = |of: &std::collections::BTreeMap<u64, (u64, [u8; 32])>| {
                    of.iter()
                        .map(|(id, (seq, _))| (*id, *seq))
                        .collect::<Vec<_>>()
                };
                return Err(format!(
                    "on node {node} lie the segments {:?}, and receipts tell of {:?}",
                    segments(&lies),
                    segments(&by_receipts)
                ));
            }
            let told: Vec<Receipt> = self.nodes[node].told.present().cloned().collect();
            for receipt in told {
                self.check_chain_of(head, node, &receipt)?;
            }
        }
        Ok(())
    }

    fn check_chain_of(
        &mut self,
        head: usize,
        node: usize,
        receipt: &Receipt,
    ) -> Result<(), String> {
        let store = self.store(head)?;
        let is_log = receipt.act == ReceiptAct::Sealed;
        if !is_log || receipt.last_seq < store.horizon_seq() {
            return Ok(());
        }
        let chain = store.chain_at(receipt.last_seq);
        let chain = chain.map_err(|error| error.to_string())?;
        if chain == Some(receipt.chain) {
            return Ok(());
        }
        let seq = receipt.last_seq;
        Err(format!(
            "a receipt of node {node} names another chain at {seq} than the head has"
        ))
    }
}

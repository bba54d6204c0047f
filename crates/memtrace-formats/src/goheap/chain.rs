//! Linked lists of the target, which may go round or never end.

/// A walk along a list: each node at most some times, and no more than a limit of them.
#[derive(Debug)]
pub(super) struct Chain {
    at: u64,
    /// A node passed before: where it comes again, the list goes round. It is moved up
    /// after 1, 2, 4… steps (Brent's algorithm).
    mark: u64,
    steps: u64,
    stretch: u64,
    left: u64,
}

impl Chain {
    pub(super) fn new(first: u64, limit: u64) -> Self {
        Self {
            at: first,
            mark: 0,
            steps: 0,
            stretch: 1,
            left: limit,
        }
    }

    /// The node to be looked at; `None` at the end.
    pub(super) fn node(&self) -> Option<u64> {
        (self.at != 0 && self.left > 0).then_some(self.at)
    }

    /// Goes on to the node after this one; the list ends where there is none.
    pub(super) fn follow(&mut self, next: Option<u64>) {
        self.left = self.left.saturating_sub(1);
        if self.steps == self.stretch {
            (self.mark, self.steps) = (self.at, 0);
            self.stretch = self.stretch.saturating_mul(2);
        }
        self.steps += 1;
        self.at = next
            .filter(|&n| n != self.mark && n != self.at)
            .unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;

    fn length(list: &[u64], limit: u64) -> usize {
        let mut chain = Chain::new(1, limit);
        let mut count = 0;
        while let Some(node) = chain.node() {
            count += 1;
            chain.follow(list.get(node as usize).copied());
        }
        count
    }

    #[test]
    fn lists_end() {
        let straight: Vec<u64> = (0..100).map(|i| (i + 1) % 100).collect();
        assert_eq!(length(&straight, 1000), 99);
        assert_eq!(length(&straight, 10), 10);
        assert_eq!(length(&[0, 2], 1000), 2);
        assert_eq!(length(&[0, 1], 1000), 1);
        for back in [1, 2, 50, 98] {
            let mut round = straight.clone();
            round[99] = back;
            assert!(length(&round, 100_000) < 500, "{back}");
        }
    }
}

//! The RFC 6962 Merkle tree over the log's lines (section 2.1; SHA-256).
//!
//! Pure. The whole tree is never kept: a [`Frontier`] holds the few subtrees that the next leaf needs, 32 bytes each,
//! so it can be stored and resumed.

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256 hash: of a leaf, of a node, or of a root.
pub type Hash = [u8; 32];

/// The hash of a leaf: SHA-256 of 0x00 and the line without its newline (RFC 6962, section 2.1).
#[must_use]
pub fn leaf_hash(line: &[u8]) -> Hash {
    sha256(&[&[0], line])
}

/// The hash of an inner node (RFC 6962, section 2.1).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// SHA-256 over the concatenation of parts.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = Hash::default();
    // Both have the same length, so zip drops nothing.
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}

/// The right edge of a tree: the roots of its perfect subtrees, largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// Resumes a tree of a given size from its subtrees; `None` if their number does not match the size.
    #[must_use]
    pub fn from_parts(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (u64::try_from(subtrees.len()) == Ok(u64::from(size.count_ones()))).then_some(Self { size, subtrees })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of the perfect subtrees, largest first.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.subtrees.push(node);
        self.size += 1;
    }

    /// The root of the tree; for an empty tree the hash of an empty string (RFC 6962, section 2.1).
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut right_to_left = self.subtrees.iter().rev();
        match right_to_left.next() {
            Some(last) => right_to_left.fold(*last, |right, left| node_hash(left, &right)),
            None => sha256(&[]),
        }
    }
}

/// The root over a list of leaves.
#[must_use]
pub fn root(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    for leaf in leaves {
        frontier.push(*leaf);
    }
    frontier.root()
}

/// The audit path of a leaf, from the leaf upwards (RFC 6962, section 2.1.1); `None` if there is no such leaf.
#[must_use]
pub fn inclusion_path(leaves: &[Hash], leaf: usize) -> Option<Vec<Hash>> {
    if leaf >= leaves.len() {
        return None;
    }
    let (mut leaves, mut leaf) = (leaves, leaf);
    let mut path = Vec::new();
    while leaves.len() > 1 {
        // The largest power of two below the number of leaves.
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        if leaf < left.len() {
            path.push(root(right));
            leaves = left;
        } else {
            path.push(root(left));
            leaf -= left.len();
            leaves = right;
        }
    }
    path.reverse();
    Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tlog_tiles::{Error, Hash as Judged, HashReader, check_record, prove_record, stored_hashes, tree_hash};

    use super::*;

    /// The storage interface of the reference implementation (a port of Go's sumdb/tlog).
    struct Stored(Vec<Judged>);

    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Judged>, Error> {
            Ok(indexes.iter().map(|at| self.0[usize::try_from(*at).unwrap()]).collect())
        }
    }

    #[test]
    fn the_empty_tree_and_the_first_leaf_are_those_of_the_rfc() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(const_hex::encode(Frontier::default().root()), empty);
        // The hash of an empty leaf, as in the test vectors of Certificate Transparency.
        let leaf = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        assert_eq!(const_hex::encode(leaf_hash(b"")), leaf);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn roots_and_paths_are_those_of_another_implementation(lines in prop::collection::vec(any::<Vec<u8>>(), 1..70)) {
            let (mut frontier, mut stored, mut leaves) = (Frontier::default(), Stored(Vec::new()), Vec::new());
            for (index, line) in lines.iter().enumerate() {
                let more = stored_hashes(u64::try_from(index).unwrap(), line, &stored).unwrap();
                stored.0.extend(more);
                frontier.push(leaf_hash(line));
                leaves.push(leaf_hash(line));
                let size = u64::try_from(index + 1).unwrap();
                prop_assert_eq!(frontier.root(), tree_hash(size, &stored).unwrap().0);
                prop_assert_eq!(&Frontier::from_parts(size, frontier.subtrees().to_vec()).unwrap(), &frontier);
                prop_assert!(Frontier::from_parts(size, vec![Hash::default(); 65]).is_none());
            }
            let size = u64::try_from(lines.len()).unwrap();
            for at in 0..lines.len() {
                let path: Vec<Judged> = inclusion_path(&leaves, at).unwrap().into_iter().map(Judged).collect();
                let index = u64::try_from(at).unwrap();
                prop_assert!(path == prove_record(size, index, &stored).unwrap());
                check_record(&path, size, Judged(frontier.root()), index, Judged(leaves[at])).unwrap();
            }
            prop_assert!(inclusion_path(&leaves, lines.len()).is_none());
        }
    }
}

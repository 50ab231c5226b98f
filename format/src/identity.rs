//! BLAKE3 of a stream whose beginning is known last.
//!
//! The tensor table holds checksums of tensors and lies before them, and the identity runs over both in file order.
//! BLAKE3 is a binary tree over chunks, so the parts behind can be hashed while they are written and the beginning
//! put under the same root at the end. Groups of 1 MiB are subtrees of that tree, 32 bytes each; only the group that
//! beginning and rest share is kept as bytes.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

const GROUP: u64 = 1 << 20;

pub(crate) struct LateFront {
    /// Bytes of the beginning.
    front: u64,
    /// What follows it up to the next group.
    kept: Vec<u8>,
    /// The groups behind that, complete.
    groups: Vec<ChainingValue>,
    /// The group being filled.
    open: Hasher,
    /// Bytes so far, the beginning included.
    position: u64,
}

impl LateFront {
    pub(crate) fn new(front: u64) -> LateFront {
        LateFront { front, kept: Vec::new(), groups: Vec::new(), open: Hasher::new(), position: front }
    }

    /// Where kept bytes end and groups begin; never 0, so that what fits one group is always kept whole.
    fn boundary(&self) -> u64 {
        (self.front + 1).next_multiple_of(GROUP)
    }

    /// The bytes that follow.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        let boundary = self.boundary();
        while !bytes.is_empty() {
            let room =
                if self.position < boundary { boundary } else { self.position / GROUP * GROUP + GROUP };
            let (now, later) = bytes.split_at(bytes.len().min((room - self.position) as usize));
            if self.position < boundary {
                self.kept.extend(now);
            } else {
                if self.position.is_multiple_of(GROUP) {
                    self.open = Hasher::new();
                    self.open.set_input_offset(self.position);
                }
                self.open.update(now);
            }
            self.position += now.len() as u64;
            if self.position > boundary && self.position.is_multiple_of(GROUP) {
                self.groups.push(self.open.finalize_non_root());
            }
            bytes = later;
        }
    }

    /// The hash of `front` (as long as announced) and all that followed.
    pub(crate) fn finish(mut self, front: &[u8]) -> [u8; 32] {
        debug_assert_eq!(front.len() as u64, self.front, "the beginning has the announced length");
        let head = [front, &self.kept].concat();
        if self.position <= GROUP {
            return *blake3::hash(&head).as_bytes();
        }
        if self.position > self.boundary() && !self.position.is_multiple_of(GROUP) {
            self.groups.push(self.open.finalize_non_root());
        }
        let mut all = Vec::with_capacity(self.groups.len() + head.len() / GROUP as usize + 1);
        for (index, group) in head.chunks(GROUP as usize).enumerate() {
            let mut hasher = Hasher::new();
            hasher.set_input_offset(index as u64 * GROUP);
            all.push(hasher.update(group).finalize_non_root());
        }
        all.extend(self.groups);
        let (left, right) = split(&all);
        *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
    }
}

/// Two or more groups as the tree divides them: the greatest power of two that leaves a rest goes left.
fn split(groups: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    groups.split_at(groups.len().next_power_of_two() / 2)
}

fn subtree(groups: &[ChainingValue]) -> ChainingValue {
    match groups {
        [one] => *one,
        _ => {
            let (left, right) = split(groups);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_whole_wherever_it_is_cut() {
        let all: Vec<u8> = (0..5_300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let group = GROUP as usize;
        for total in [0, 1, 1000, group - 1, group, group + 1, 2 * group, 3 * group, 3 * group + 1, all.len()]
        {
            for front in [0, 1, 4096, group - 1, group, group + 1, 2 * group + 77] {
                for chunk in [4096, group, 1_500_001] {
                    let Some(rest) = all[..total].get(front..) else { continue };
                    let mut late = LateFront::new(front as u64);
                    rest.chunks(chunk).for_each(|part| late.update(part));
                    let expected = *blake3::hash(&all[..total]).as_bytes();
                    assert_eq!(
                        late.finish(&all[..front]),
                        expected,
                        "{total} bytes, {front} late, by {chunk}"
                    );
                }
            }
        }
    }
}

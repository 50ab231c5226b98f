//! Order by a number, with one sort for whatever is ordered: the standard library's takes several kilobytes of code for
//! each type of items.

/// Puts items in ascending order of `key`; those of equal keys stay in theirs.
pub fn by_number<T>(items: &mut Vec<T>, key: impl Fn(&T) -> u64) {
    let order = sorted(items.iter().map(key).collect());
    let mut left: Vec<_> = items.drain(..).map(Some).collect();
    items.extend(order.into_iter().filter_map(|i| left[i].take()));
}

/// The places of the keys in ascending order.
#[inline(never)]
fn sorted(keys: Vec<u64>) -> Vec<usize> {
    let mut order: Vec<_> = keys.into_iter().zip(0usize..).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, i)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_by_their_numbers_and_equal_ones_as_they_stood() {
        let mut items: Vec<_> = (0..500u64).map(|i| (i * i * 7919 % 31, i)).collect();
        let mut expected = items.clone();
        expected.sort_by_key(|item| item.0);
        by_number(&mut items, |item| item.0);
        assert_eq!(items, expected);
    }
}

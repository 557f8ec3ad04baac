//! A map of memories: their vectors laid out in a plane, so that a person sees what lies near what.
//!
//! Principal component analysis (Pearson 1901, Hotelling 1933): the two directions in which the vectors differ most, found by
//! power iteration with deflation on the centred vectors. The covariance is never formed: one step costs `2 n d`.

use mneme_base::{Embedding, Namespace};

use crate::domain::Memory;
use crate::store::{MemoryStore, Scan, StoreError};

/// Vectors that one map shows at most: a step on so many of 384 dimensions costs about 4 million multiplications.
pub const MAP_POINTS_MAX: usize = 5_000;
/// Steps of the power iteration; a map needs no more digits than a screen has.
const STEPS: usize = 60;

/// Memories that are looked at for a map at most: reading so many takes about a second.
const SCANNED_MAX: u64 = 100_000;
/// Memories read at once.
const PAGE: usize = 1_000;

/// Memories laid out in a plane.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemoryMap {
    /// Memories that have a vector, oldest first, each with its place.
    pub points: Vec<(Memory, [f32; 2])>,
    /// The share of the variance that each axis shows.
    pub explained: [f32; 2],
    /// Memories that were looked at; replaced ones are not.
    pub memories: u64,
    /// Of those chosen, how many have no vector.
    pub without_vector: u64,
}

/// Lays memories of a namespace, or of all, out in a plane. Of more than `points_max`, some are chosen evenly over time (at
/// least half of `points_max`).
pub fn map(store: &dyn MemoryStore, namespace: Option<Namespace>, points_max: usize) -> Result<MemoryMap, StoreError> {
    let points_max = points_max.clamp(1, MAP_POINTS_MAX);
    let (mut chosen, mut seen, mut stride) = (Vec::new(), 0_u64, 1_u64);
    let mut scan = Scan { namespace, after: None, limit: PAGE };
    loop {
        let page = store.scan(&scan)?;
        let is_last = page.len() < PAGE;
        scan.after = page.last().map(|memory| memory.id);
        for memory in page.into_iter().filter(|memory| memory.superseded_by.is_none()) {
            if seen.is_multiple_of(stride) {
                chosen.push(memory);
            }
            seen += 1;
            if chosen.len() > points_max {
                // Every second one goes, and from here on half as many are taken.
                let mut place = 0_usize;
                chosen.retain(|_| {
                    place += 1;
                    place % 2 == 1
                });
                stride *= 2;
            }
        }
        if is_last || seen >= SCANNED_MAX {
            break;
        }
    }
    let ids: Vec<_> = chosen.iter().map(|memory| memory.id).collect();
    let (mut memories, mut vectors) = (Vec::new(), Vec::new());
    let chosen_count = chosen.len();
    for (memory, vector) in chosen.into_iter().zip(store.vectors(&ids)?) {
        if let Some(vector) = vector {
            memories.push(memory);
            vectors.push(vector);
        }
    }
    let without_vector = (chosen_count - memories.len()) as u64;
    let Projection { points, explained } = project(&vectors);
    Ok(MemoryMap { points: memories.into_iter().zip(points).collect(), explained, memories: seen, without_vector })
}

/// Vectors laid out in a plane.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Projection {
    /// A place for each vector, in their order, within -1 to 1 on both axes.
    pub points: Vec<[f32; 2]>,
    /// The share of the vectors' variance that each axis shows, 0 to 1.
    pub explained: [f32; 2],
}

/// Lays vectors out in a plane.
///
/// # Shapes
/// `vectors: [n][d] f32` with one `d` for all, those of another `d` than the first lie in the middle; `points: [n][2] f32`.
/// The same vectors give the same map. Costs `4 * STEPS * n * d` multiplications.
pub fn project(vectors: &[Embedding]) -> Projection {
    let dimensions = vectors.first().map_or(0, Embedding::dimensions);
    let rows: Vec<&[f32]> =
        vectors.iter().map(|v| if v.dimensions() == dimensions { v.as_slice() } else { &[] }).collect();
    let used = rows.iter().filter(|row| !row.is_empty()).count().max(1) as f64;
    let mut mean = vec![0.0_f64; dimensions];
    for row in &rows {
        mean.iter_mut().zip(*row).for_each(|(m, x)| *m += f64::from(*x) / used);
    }
    let total: f64 =
        rows.iter().map(|row| row.iter().zip(&mean).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum::<f64>()).sum();
    let mut axes: Vec<Vec<f64>> = Vec::with_capacity(2);
    let mut explained = [0.0; 2];
    for share in &mut explained {
        let (axis, variance) = principal_axis(&rows, &mean, &axes);
        *share = if total > 0.0 { (variance / total).clamp(0.0, 1.0) as f32 } else { 0.0 };
        axes.push(axis);
    }
    let place = |row: &[f32], axis: &[f64]| if row.is_empty() { 0.0 } else { dot(row, &mean, axis) };
    let mut points: Vec<[f64; 2]> = rows.iter().map(|row| [place(row, &axes[0]), place(row, &axes[1])]).collect();
    // One scale for both axes: distances keep their proportion.
    let reach = points.iter().flatten().fold(0.0_f64, |reach, x| reach.max(x.abs()));
    if reach > 0.0 {
        points.iter_mut().flatten().for_each(|x| *x /= reach);
    }
    Projection { points: points.into_iter().map(|[x, y]| [x as f32, y as f32]).collect(), explained }
}

/// The direction of largest variance at right angles to `former`, and that variance (summed over the rows).
fn principal_axis(rows: &[&[f32]], mean: &[f64], former: &[Vec<f64>]) -> (Vec<f64>, f64) {
    // A start without a pattern of its own: no vector of meaning is at right angles to it.
    let mut axis: Vec<f64> = (0..mean.len()).map(|i| ((i as f64 + 1.0) * 12.9898).sin()).collect();
    let mut variance = 0.0;
    clean(&mut axis, former);
    for _ in 0..STEPS {
        let mut next = vec![0.0_f64; mean.len()];
        for row in rows.iter().filter(|row| !row.is_empty()) {
            let along = dot(row, mean, &axis);
            next.iter_mut().zip(row.iter().zip(mean)).for_each(|(n, (x, m))| *n += along * (f64::from(*x) - m));
        }
        variance = next.iter().zip(&axis).map(|(n, a)| n * a).sum();
        if !clean(&mut next, former) {
            return (axis, 0.0);
        }
        axis = next;
    }
    // An axis and its mirror image are the same; the one whose largest component is positive is taken.
    let largest = axis.iter().fold(0.0_f64, |best, x| if x.abs() > best.abs() { *x } else { best });
    if largest < 0.0 {
        axis.iter_mut().for_each(|x| *x = -*x);
    }
    (axis, variance.max(0.0))
}

/// Takes the parts along `former` out and scales to length 1. `false` when nothing is left.
fn clean(axis: &mut [f64], former: &[Vec<f64>]) -> bool {
    for other in former {
        let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
        axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
    }
    let length = axis.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length < 1e-12 {
        return false;
    }
    axis.iter_mut().for_each(|x| *x /= length);
    true
}

fn dot(row: &[f32], mean: &[f64], axis: &[f64]) -> f64 {
    row.iter().zip(mean).zip(axis).map(|((x, m), a)| (f64::from(*x) - m) * a).sum()
}

#[cfg(test)]
mod tests {
    use mneme_base::{EmbeddingGeneration, OpId, Timestamp};

    use super::*;
    use crate::store::{Operation, OperationKind};
    use crate::{InMemoryStore, NewMemory};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn a_map_chooses_evenly_leaves_out_what_was_replaced_and_counts_what_has_no_vector() {
        let store = InMemoryStore::default();
        let space: Namespace = "map".parse().unwrap();
        let batch: Vec<Operation> = (0..40)
            .map(|number| Operation {
                op_id: OpId::new(number),
                kind: OperationKind::Remember(NewMemory::note(space.clone(), format!("note number {number}"), "test")),
            })
            .collect();
        store.apply(&batch, NOW).unwrap();
        let generation = EmbeddingGeneration("test".into());
        store.set_generation(&generation).unwrap();
        let pending = store.pending_embeddings(30).unwrap();
        let vectors = pending
            .iter()
            .enumerate()
            .map(|(place, pending)| (pending.id, vec![vector(&[1.0, place as f32]); pending.texts.len()]));
        store.store_embeddings(&generation, vectors.collect()).unwrap();
        let whole = map(&store, Some(space.clone()), 100).unwrap();
        assert_eq!((whole.points.len(), whole.memories, whole.without_vector), (30, 40, 10));
        assert!(whole.points.is_sorted_by_key(|(memory, _)| memory.id));
        let sample = map(&store, None, 10).unwrap();
        let all = sample.points.len() as u64 + sample.without_vector;
        assert!((5..=10).contains(&all) && sample.memories == 40, "{all}");
        let old = whole.points[0].0.id;
        let by = NewMemory::note(space.clone(), "something else", "test");
        store
            .apply(&[Operation { op_id: OpId::new(99), kind: OperationKind::Supersede { id: old, by } }], NOW)
            .unwrap();
        assert!(map(&store, None, 100).unwrap().points.iter().all(|(memory, _)| memory.id != old));
        assert_eq!(map(&store, Some("nothing".parse().unwrap()), 10).unwrap(), MemoryMap::default());
    }

    fn vector(components: &[f32]) -> Embedding {
        Embedding::normalized(components.to_vec()).unwrap()
    }

    #[test]
    fn two_groups_come_to_lie_apart_and_each_together() {
        let vectors: Vec<Embedding> = (0..20)
            .map(|i| {
                let wobble = i as f32 * 0.01;
                if i % 2 == 0 { vector(&[1.0, wobble, 0.1, 0.0]) } else { vector(&[0.0, wobble, 0.1, 1.0]) }
            })
            .collect();
        let map = project(&vectors);
        let x = |i: usize| map.points[i][0];
        assert!((0..20).all(|i| x(i) * x(i % 2) > 0.0), "{map:?}");
        assert!(x(0) * x(1) < 0.0);
        assert!(map.explained[0] > 0.9 && map.explained[0] + map.explained[1] <= 1.0 + 1e-4, "{:?}", map.explained);
        assert_eq!(map, project(&vectors), "the same vectors give the same map");
    }

    #[test]
    fn the_axes_carry_the_variance_of_a_known_cloud() {
        // Four points on a cross: 3 along the first axis and 1 along the second, so that the shares are 9 to 1.
        let cross = [[0.3_f32, 0.0], [-0.3, 0.0], [0.0, 0.1], [0.0, -0.1]];
        // A far third component keeps the directions from being scaled differently by the normalisation.
        let vectors: Vec<Embedding> = cross.iter().map(|[x, y]| vector(&[*x, *y, 30.0])).collect();
        let map = project(&vectors);
        assert!((map.explained[0] - 0.9).abs() < 1e-3 && (map.explained[1] - 0.1).abs() < 1e-3, "{:?}", map.explained);
        assert!((map.points[0][0].abs() - 1.0).abs() < 1e-3 && (map.points[2][1].abs() - 1.0 / 3.0).abs() < 1e-2);
    }

    #[test]
    fn nothing_one_vector_and_equal_vectors_are_maps_too() {
        assert_eq!(project(&[]), Projection::default());
        let one = vector(&[1.0, 2.0]);
        assert_eq!(project(std::slice::from_ref(&one)).points, [[0.0, 0.0]]);
        let same = project(&[one.clone(), one.clone(), vector(&[1.0])]);
        assert_eq!((same.points.len(), same.explained), (3, [0.0, 0.0]));
        assert!(same.points.iter().flatten().all(|x| x.is_finite()));
    }
}

//! A few hundred worlds; and every seed that once failed.

/// Seeds that once broke an invariant, one a line.
const REMEMBERED: &str = include_str!("seeds.txt");

#[test]
fn no_seed_breaks_an_invariant() {
    let remembered = REMEMBERED
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let failed: Vec<String> = (0..60)
        .chain(remembered)
        .filter_map(|seed: u64| {
            let error = nuage_sim_storage::run(seed).err()?;
            Some(format!("nuage-sim-storage --replay {seed}   # {error}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

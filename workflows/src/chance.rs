//! Where chance comes from. A simulation seeds it, so that a run that went wrong can be run again, exactly.

use std::cell::RefCell;
use std::marker::PhantomData;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// While this lives, all that is left to chance on this thread follows from one seed.
#[must_use = "chance is left to itself again when this is dropped"]
pub struct Seeded(PhantomData<*const ()>);

impl Drop for Seeded {
    fn drop(&mut self) {
        SEEDED.with_borrow_mut(|seeded| *seeded = None);
    }
}

/// For simulations: the same seed, and the same order of events, give the same choices.
pub fn seeded(seed: u64) -> Seeded {
    SEEDED.with_borrow_mut(|seeded| *seeded = Some(StdRng::seed_from_u64(seed)));
    Seeded(PhantomData)
}

/// Draws by chance: the system's, unless a simulation has seeded it.
pub(crate) fn draw<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => draw(seeded),
        None => draw(&mut rand::rng()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_choices_and_only_while_it_is_held() {
        let drawn = |from: u64| {
            let _seeded = seeded(from);
            (draw(|random| random.next_u64()), draw(|random| random.next_u64()))
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert_ne!(draw(|random| random.next_u64()), drawn(7).0);
    }
}

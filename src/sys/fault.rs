//! Panics that a test wants to happen. A release build has none of this.

/// Unwinds as a panic does where the variable `UNIONFS_TEST_PANIC` of the environment is `NAME:N`, the N-th time that the
/// process comes to the point of this name; does nothing otherwise, and nothing at all in a release build.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    debug::point(name);
    #[cfg(not(debug_assertions))]
    let _ = name; // Only debug builds look at it.
}

#[cfg(debug_assertions)]
mod debug {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Wanted {
        name: String,
        left: AtomicUsize,
    }

    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();

    fn wanted() -> Option<Wanted> {
        let value = std::env::var("UNIONFS_TEST_PANIC").ok()?;
        let (name, number) = value.split_once(':')?;
        Some(Wanted { name: name.to_owned(), left: AtomicUsize::new(number.parse().ok()?) })
    }

    pub(super) fn point(name: &str) {
        let Some(wanted) = WANTED.get_or_init(wanted).as_ref().filter(|wanted| wanted.name == name) else { return };
        // Relaxed: only the number of times counts.
        if wanted.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            log::error!("a test has this panic: {name}");
            std::panic::resume_unwind(Box::new("a test has this panic"));
        }
    }
}

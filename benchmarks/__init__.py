"""Programs that measure persimmon_ext; each checks its results before it times them. See docs/performance.md."""

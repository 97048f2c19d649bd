//! Recorded stacks of real servers, walked again by the kernel's own step and search: no kernel needed.

use pgleak_tests::replay::{Recording, file};

fn replay(build: &str) {
    let recording = Recording::read(&file(build)).unwrap();
    assert!(recording.stacks.len() >= 24, "{build}: {} stacks", recording.stacks.len());
    let (atlas, set) = recording.tables().unwrap();
    for (index, stack) in recording.stacks.iter().enumerate() {
        let walked = stack.walk(&atlas, &set, stack.bytes());
        assert_eq!(
            (&walked.frames, Some(walked.end)),
            (&stack.frames, stack.end()),
            "{build}, stack {index}"
        );

        // Without one return address, it is another stack: the bytes are what was walked.
        let mut wrong = stack.bytes();
        let middle = stack.frames[stack.frames.len() / 2];
        wrong.words.iter_mut().filter(|word| **word == middle).for_each(|word| *word = 0);
        assert_ne!(stack.walk(&atlas, &set, wrong).frames, stack.frames, "{build}, stack {index}");
    }
}

#[test]
fn stacks_of_debian_15() {
    replay("debian-15");
}

#[test]
fn stacks_of_npm_17() {
    replay("npm-17");
}

//! A volume that becomes full in the middle of an epoch: the run pauses, says how much is missing, and goes on later.

use crate::recovery::assert_same;
use crate::support::{contents, finished_run, program, text, train_arguments};
use std::process::Command;

/// On a file system of its own: starts a run, fills the volume while the first epoch is being trained, makes room, resumes.
const SCRIPT: &str = r#"
mount -t tmpfs -o size=800m tmpfs "$VOLUME" || exit 99
"$PROGRAM" "$@" >"$OUT/first.json" 2>"$OUT/first.err" &
run=$!
until grep -q '"phase":"train"' "$OUT/first.json"; do kill -0 $run || break; sleep 0.05; done
head -c 1000000000 /dev/zero >"$VOLUME/filler" 2>/dev/null
wait $run; echo $? >"$OUT/first.code"
head -c 1000000000 /dev/zero >"$VOLUME/filler-of-what-the-cache-left" 2>/dev/null
"$PROGRAM" resume "$VOLUME" >/dev/null 2>"$OUT/second.err"; echo $? >"$OUT/second.code"
"$PROGRAM" verify "$VOLUME" >"$OUT/verified" 2>&1; echo $? >"$OUT/verified.code"
rm "$VOLUME"/filler*
"$PROGRAM" resume "$VOLUME" >/dev/null 2>"$OUT/third.err"; echo $? >"$OUT/third.code"
cp -a "$VOLUME/runs" "$OUT/"
"#;

#[test]
fn a_volume_that_becomes_full_pauses_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (volume, out) = (folder.path().join("volume"), folder.path().join("out"));
    std::fs::create_dir(&volume).unwrap();
    std::fs::create_dir(&out).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh"]).args(train_arguments(&volume));
    command.env("VOLUME", &volume).env("OUT", &out).env("PROGRAM", program("deepcluster"));
    if !command.status().is_ok_and(|status| status.success()) {
        println!("left out: this machine lets nobody mount a file system");
        return;
    }
    let said = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    for (time, word) in [("first", "No space left"), ("second", "is full")] {
        let sentence = said(&format!("{time}.err"));
        assert_eq!(said(&format!("{time}.code")), "2\n", "{time}: {sentence}");
        assert!(sentence.contains(word) && sentence.contains(text(&volume)), "{time}: {sentence}");
    }
    assert!(said("first.err").contains("make room for"), "{}", said("first.err"));
    assert_eq!(said("verified.code"), "0\n", "{}", said("verified"));
    assert_eq!(said("third.code"), "0\n", "{}", said("third.err"));
    let epochs = contents(&out.join("runs/run-0001/epochs"));
    assert_same(&contents(&finished_run().folder().join("epochs")), &epochs);
    let events = said("runs/run-0001/events.jsonl");
    assert!(events.contains("\"severity\":\"error\",\"state\":\"paused\""), "{events}");
    assert!(events.contains("the volume is full: decoded images were removed"), "{events}");
}

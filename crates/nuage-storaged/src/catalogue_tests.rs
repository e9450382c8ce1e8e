//! The catalogue on directories: what is put aside, what stays closed, what goes.

use super::*;
use crate::disks::BasePlace;

/// A fast disk for journals and a large one for what compaction writes.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nuage-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("fast")).expect("a place");
        Self(dir)
    }

    fn open(&self) -> Catalogue {
        let others = [("fast".to_owned(), self.0.join("fast"))];
        let base = BasePlace::new(None, self.0.join("large"));
        let disks = Disks::new(&self.0.join("first"), &others, Some(&base), &[]);
        Catalogue::open(&self.0.join("first"), disks).expect("directories")
    }

    fn large(&self) -> Vec<String> {
        let found = fs::read_dir(self.0.join("large/volumes")).expect("a directory");
        let mut names: Vec<_> = found
            .map(|entry| {
                let name = entry.expect("an entry").file_name();
                Disks::volume_of(name.to_str().expect("a name")).to_owned()
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create(catalogue: &mut Catalogue, disk: &str) -> PathBuf {
    let text = format!(r#"{{"volume": "v", "size_bytes": 67108864, "disk": "{disk}"}}"#);
    let spec = serde_json::from_str(&text).expect("words");
    catalogue.create(spec).expect("a volume");
    let link = catalogue.folder("v").join("journal").join(BASE_FOLDER);
    fs::read_link(link).expect("a link")
}

#[test]
fn a_volume_whose_disk_was_missing_for_a_while_still_has_what_lies_on_the_large_one() {
    let place = Place::new("missing");
    let base = create(&mut place.open(), "fast");
    fs::write(base.join("seg.000001"), "what was compacted").expect("a file");
    let (fast, away) = (place.0.join("fast"), place.0.join("away"));
    fs::rename(&fast, &away).expect("unmounted");
    // A copy that is made anew meanwhile has a directory of its own there.
    let other = create(&mut place.open(), "");
    assert_ne!(other, base);
    assert!(fs::read_dir(&other).expect("a directory").next().is_none());
    fs::remove_dir_all(&fast).expect("the mount point");
    fs::rename(&away, &fast).expect("mounted again");
    place.open();
    assert!(base.join("seg.000001").exists());
}

#[test]
fn a_volume_stays_closed_while_its_base_segments_are_on_a_disk_that_is_not_in_service() {
    let place = Place::new("not-in-service");
    let base = create(&mut place.open(), "fast");
    let others = [("fast".to_owned(), place.0.join("fast"))];
    let opened = |old_bases: &[BasePlace]| {
        let disks = Disks::new(&place.0.join("first"), &others, None, old_bases);
        let catalogue = Catalogue::open(&place.0.join("first"), disks).expect("directories");
        (catalogue.open_copy("v").is_ok(), catalogue.base_apart("v"))
    };
    assert_eq!(opened(&[]), (false, None));
    let of = |disk: &str| BasePlace::new(Some(disk), place.0.join("large"));
    let name = base.file_name().expect("a name").to_string_lossy();
    let apart = Some(("slow".to_owned(), name.into_owned()));
    assert_eq!(opened(&[of("slow")]), (true, apart));
    assert_eq!(
        opened(&[of("fast")]),
        (true, None),
        "it is the journal's own"
    );
}

#[test]
fn a_copy_that_cannot_be_read_is_put_aside_and_the_others_are_there() {
    fn rots(path: &Path) {
        fs::write(path, "rotten").expect("a file");
    }
    // As one that the disk does not give: it is there, and no reading helps.
    fn is_refused(path: &Path) {
        fs::remove_file(path).expect("a file");
        fs::create_dir(path).expect("a folder");
    }
    type Spoil = (&'static [&'static str], fn(&Path));
    let spoils: [Spoil; 3] = [
        (&[SPEC], rots),
        (&[SPEC], is_refused),
        (&["journal/super.a", "journal/super.b"], rots),
    ];
    for (damaged, spoil) in spoils {
        let place = Place::new("unreadable");
        let mut catalogue = place.open();
        create(&mut catalogue, "fast");
        let other = r#"{"volume": "w", "size_bytes": 67108864}"#;
        let spec = serde_json::from_str(other).expect("words");
        catalogue.create(spec).expect("a volume");
        for file in damaged {
            spoil(&catalogue.folder("v").join(file));
        }
        drop(catalogue);
        let mut catalogue = place.open();
        assert_eq!(catalogue.volumes.keys().collect::<Vec<_>>(), ["w"]);
        assert!(place.0.join("fast/retired/v/journal").exists());
        let aside: Vec<_> = catalogue
            .retired
            .iter()
            .map(|found| &found.volume)
            .collect();
        assert_eq!(aside, ["v"]);
        create(&mut catalogue, "fast");
        assert_eq!(place.open().volumes.keys().collect::<Vec<_>>(), ["v", "w"]);
    }
}

#[test]
fn a_copy_that_cannot_even_be_put_aside_stays_and_the_others_are_there() {
    let place = Place::new("stuck");
    let mut catalogue = place.open();
    create(&mut catalogue, "fast");
    let other = r#"{"volume": "w", "size_bytes": 67108864}"#;
    catalogue
        .create(serde_json::from_str(other).expect("words"))
        .expect("a volume");
    fs::write(catalogue.folder("v").join(SPEC), "rotten").expect("a file");
    // As on a disk that takes no writes: what is to say where it went cannot be written.
    fs::create_dir(catalogue.folder("v").join("retired.json.new")).expect("a folder");
    drop(catalogue);
    let catalogue = place.open();
    assert_eq!(catalogue.volumes.keys().collect::<Vec<_>>(), ["w"]);
    assert!(place.0.join("fast/volumes/v/journal/super.a").exists());
}

#[test]
fn what_lies_aside_and_cannot_be_read_keeps_nothing_from_starting() {
    let place = Place::new("aside");
    let mut catalogue = place.open();
    create(&mut catalogue, "fast");
    // No directory at all; and then entries that no copy has left.
    fs::write(place.0.join("fast/retired"), "rotten").expect("a file");
    drop(catalogue);
    let catalogue = place.open();
    assert!(catalogue.volumes.contains_key("v") && catalogue.retired.is_empty());
    fs::write(catalogue.folder("v").join(SPEC), "rotten").expect("a file");
    drop(catalogue);
    let mut catalogue = place.open();
    assert_eq!(catalogue.retired.len(), 1);
    assert!(place.0.join("fast/retired~1").is_file());
    let aside = place.0.join("fast/retired");
    fs::write(aside.join("w"), "rotten").expect("a file");
    fs::create_dir(aside.join("v~1")).expect("a folder");
    create(&mut catalogue, "fast");
    drop(catalogue);
    let mut catalogue = place.open();
    assert_eq!(catalogue.retired.len(), 1);
    catalogue.delete("v").expect("deleted");
    let left: Vec<_> = fs::read_dir(&aside).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_volume_whose_description_is_gone_is_put_aside_and_what_broke_off_is_not() {
    let place = Place::new("gone");
    let mut catalogue = place.open();
    let base = create(&mut catalogue, "fast");
    let folder = catalogue.folder("v");
    // What breaks off right before its end: it has all that a volume has, but for its description.
    let begun = folder.with_file_name("w");
    begin(&begun).expect("a folder");
    fs::create_dir_all(begun.join("journal")).expect("a folder");
    fs::write(begun.join("journal/seg.000001"), "of its parent").expect("a file");
    fs::write(base.join("seg.000001"), "what was compacted").expect("a file");
    fs::remove_file(folder.join(SPEC)).expect("rotten");
    drop(catalogue);
    let catalogue = place.open();
    assert!(catalogue.volumes.is_empty() && !begun.exists());
    let aside = place.0.join("fast/retired/v");
    assert!(aside.join("journal/super.a").exists());
    assert_eq!(catalogue.retired[0].volume, "v");
}

#[test]
fn a_creation_leaves_alone_what_lies_there() {
    let place = Place::new("there");
    let mut catalogue = place.open();
    let folder = place.0.join("fast/volumes/v");
    fs::create_dir_all(folder.join("journal")).expect("moved back by hand");
    fs::write(folder.join("journal/seg.000001"), "data").expect("a file");
    let text = r#"{"volume": "v", "size_bytes": 67108864, "disk": "fast"}"#;
    let spec: CreateVolume = serde_json::from_str(text).expect("words");
    let refusal = catalogue.create(spec).expect_err("it is not known");
    assert_eq!(refusal.code, Code::Conflict);
    assert!(folder.join("journal/seg.000001").exists());
}

#[test]
fn a_deletion_leaves_nothing_on_the_large_disk_wherever_it_broke_off() {
    let place = Place::new("broken-off");
    let mut catalogue = place.open();
    let base = create(&mut catalogue, "fast");
    fs::write(base.join("seg.000001"), "what was compacted").expect("a file");
    let folder = catalogue.folder("v");
    fs::rename(folder.join(SPEC), folder.join(UNFINISHED)).expect("begun");
    let mut catalogue = place.open();
    assert_eq!(place.large(), [""; 0]);
    // And of one whose own disk never came back.
    let base = create(&mut catalogue, "fast");
    fs::write(base.join("seg.000001"), "what was compacted").expect("a file");
    fs::remove_dir_all(place.0.join("fast")).expect("lost");
    let mut catalogue = place.open();
    create(&mut catalogue, "");
    assert_eq!(place.large(), ["v", "v"]);
    catalogue.delete("v").expect("deleted");
    assert_eq!(place.large(), [""; 0]);
    // And of a copy that was made meanwhile, once the first is back.
    create(&mut catalogue, "fast");
    let (fast, away) = (place.0.join("fast"), place.0.join("away"));
    fs::rename(&fast, &away).expect("unmounted");
    create(&mut place.open(), "fast");
    fs::remove_dir_all(&fast).expect("the mount point");
    fs::rename(&away, &fast).expect("mounted again");
    place.open().delete("v").expect("deleted");
    assert_eq!(place.large(), [""; 0]);
}

/// Two disks for journals and a large one, each a directory.
fn two_disks(place: &Place, lost: &[PathBuf]) -> Catalogue {
    let disk = |name: &str| (name.to_owned(), place.0.join(name));
    let base = BasePlace::new(Some("large"), place.0.join("large"));
    let first = place.0.join("first");
    let disks = Disks::new(&first, &[disk("fast"), disk("other")], Some(&base), &[]);
    Catalogue::open(&first, disks.with_lost_bases(lost)).expect("directories")
}

#[test]
fn a_copy_whose_base_segments_are_lost_stays_until_a_head_elsewhere_wants_it() {
    let place = Place::new("base-lost");
    create(&mut two_disks(&place, &[]), "fast");
    let large = place.0.join("large");
    fs::rename(&large, place.0.join("away")).expect("not mounted");
    let here = [("fast".to_owned(), place.0.join("fast"))];
    let without = |lost: &[PathBuf]| {
        let disks = Disks::new(&place.0.join("first"), &here, None, &[]).with_lost_bases(lost);
        Catalogue::open(&place.0.join("first"), disks).expect("directories")
    };
    let away = without(&[]);
    assert!(!away.is_base_lost("v") && away.open_copy("v").is_err());
    assert!(
        without(std::slice::from_ref(&large)).is_base_lost("v"),
        "somebody says so"
    );

    let mut replaced = two_disks(&place, &[]);
    assert!(replaced.is_base_lost("v") && replaced.open_copy("v").is_err());
    assert!(replaced.volumes.contains_key("v"), "it may be the only one");
    replaced.put_baseless_aside("v", 0).expect("room");
    let aside = replaced.retired.iter().map(|aside| aside.volume.as_str());
    assert_eq!(aside.collect::<Vec<_>>(), ["v"]);
    create(&mut replaced, "fast");
    assert!(replaced.open_copy("v").is_ok());
}

#[test]
fn of_two_copies_the_one_whose_base_segments_are_not_there_gives_way() {
    let place = Place::new("base-of-one");
    let base = create(&mut two_disks(&place, &[]), "fast");
    let (fast, away) = (place.0.join("fast"), place.0.join("away"));
    fs::rename(&fast, &away).expect("unmounted");
    let mut catalogue = two_disks(&place, &[]);
    let uuid = "0123456789abcdef0123456789abcdef";
    let text =
        format!(r#"{{"volume": "v", "size_bytes": 67108864, "disk": "other", "uuid": "{uuid}"}}"#);
    catalogue
        .create(serde_json::from_str(&text).expect("words"))
        .expect("a volume");
    // As if both had been made of one volume.
    let described = away.join("volumes/v").join(SPEC);
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(&described).expect("a file")).expect("words");
    spec["uuid"] = uuid.into();
    fs::write(&described, spec.to_string()).expect("a file");
    drop(catalogue);
    fs::remove_dir_all(&fast).expect("the mount point");
    fs::rename(&away, &fast).expect("mounted again");
    fs::remove_dir(base).expect("its directory");
    let catalogue = two_disks(&place, &[]);
    assert_eq!(catalogue.disk_of("v"), "other");
    assert_eq!(catalogue.retired.len(), 1);
}

#[test]
fn what_lies_on_the_large_disk_goes_where_no_journal_leads_to_it() {
    let place = Place::new("orphans");
    let mut catalogue = two_disks(&place, &[]);
    let base = create(&mut catalogue, "fast");
    // Of a volume that was deleted while the large disk was away, and of one whose own disk was lost.
    for name in ["w", "v~0123456789abcdef"] {
        let orphan = base.with_file_name(name);
        fs::create_dir(&orphan).expect("room");
        fs::write(orphan.join("seg.000001"), "what was compacted").expect("a file");
    }
    // Nothing of a copy that lies aside.
    let retired = place.0.join("fast/retired");
    fs::create_dir_all(retired.join("v/journal")).expect("room");
    let aside = base.with_file_name("v~1");
    fs::create_dir(&aside).expect("room");
    std::os::unix::fs::symlink(&aside, retired.join("v/journal").join(BASE_FOLDER)).expect("room");
    let large = Some("large".to_owned());
    let mut removed = catalogue.disks.remove_orphans().expect("a disk");
    removed.sort();
    let name = |name: &str| (large.clone(), name.to_owned());
    assert_eq!(removed, [name("v~0123456789abcdef"), name("w")]);
    assert_eq!(place.large(), ["v", "v"]);
    assert!(base.is_dir() && aside.is_dir());
}

#[test]
fn nothing_is_made_in_the_place_of_a_disk_that_went_while_the_daemon_runs() {
    let place = Place::new("went");
    let mut catalogue = place.open();
    create(&mut catalogue, "fast");
    let (fast, away) = (place.0.join("fast"), place.0.join("away"));
    fs::rename(&fast, &away).expect("unmounted");
    fs::create_dir(&fast).expect("the mount point");
    assert!(catalogue.open_copy("v").is_err());
    let text = r#"{"volume": "w", "size_bytes": 67108864, "disk": "fast"}"#;
    let spec = serde_json::from_str(text).expect("words");
    assert!(catalogue.create(spec).is_err());
    assert!(fs::read_dir(&fast).expect("a folder").next().is_none());
}

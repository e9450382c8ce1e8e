"""What a person is told of a QEMU that would not start."""

from nuage.vnode.guest import complaint_in

REASON = "iSCSI: Failed to log in to target. Status: Authentication failure(513)"


def test_the_reason_is_told_without_the_argument_that_it_is_about() -> None:
    argument = '-blockdev {"driver":"iscsi","lun":0,"cache":{"direct":true}}'
    assert complaint_in(f"a warning\nqemu-system-x86_64: {argument}: {REASON}\n") == REASON


def test_what_repeats_no_argument_is_told_as_it_is() -> None:
    assert (
        complaint_in("qemu-system-x86_64: out of memory\n") == "qemu-system-x86_64: out of memory"
    )

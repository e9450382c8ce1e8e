"""Boot volumes start from a template of their image, and are filled where there is none."""

import asyncio
from collections.abc import Iterator

import pytest
import structlog
from tests.simulation.federation.test_controllers_that_die import play
from tests.simulation.federation.test_moves_step_by_step import LYON, Move

from nuage.errors import InvalidRequest, NotFound
from nuage.iaas.machines import CreateVm, NameVm
from nuage.iaas.past import MarkVolumes
from nuage.iaas.volumes import ListVolumes, NameVolume
from nuage.ids import VolumeId
from nuage.model.contract import AckPolicy, Contract
from nuage.model.history import IMAGE_MARK
from nuage.model.iaas import Iaas
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Volume, VolumeState


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


async def boot(move: Move, name: str, iaas: str = "copied") -> Volume:
    """Create a VM and return its boot volume once it runs."""
    lyon = move.sites[LYON]
    await lyon.perform("vm.create", CreateVm(iaas=iaas, name=name, image="guest", site="lyon"))

    def vm() -> Vm:
        return next(vm for vm in lyon.index.values(Vm) if vm.name == name)

    await move.until(lambda: vm().state is VmState.RUNNING, f"{name} runs")
    return lyon.index.value(Volume, vm().volumes[0])


def templates(move: Move) -> list[Volume]:
    return [volume for volume in move.sites[LYON].index.values(Volume) if volume.is_template]


async def has_template(move: Move) -> Volume:
    await move.until(
        lambda: any(t.state is VolumeState.READY and t.portal for t in templates(move)),
        "there is a template",
    )
    await asyncio.sleep(3.0)
    return templates(move)[0]


def filled_on_nodes_of(move: Move, volume_id: VolumeId) -> bool:
    return any(
        ("fill", volume_id) in daemon.acts
        for site in move.sites.values()
        for ionode in site.ionodes
        for daemon in ionode.daemons.values()
    )


def test_the_first_vm_of_an_image_is_filled_and_the_next_ones_are_clones() -> None:
    async def story(move: Move) -> None:
        first = await boot(move, "web")
        assert first.origin is None
        assert filled_on_nodes_of(move, first.volume_id)
        template = await has_template(move)
        assert template.origin is not None
        assert template.origin.volume_id == first.volume_id
        second = await boot(move, "api")
        assert second.origin is not None
        assert second.origin.volume_id == template.volume_id
        assert not filled_on_nodes_of(move, second.volume_id)
        assert second.replicas == template.replicas
        assert [t.volume_id for t in templates(move)] == [template.volume_id]

    play(story)


def test_a_template_is_nobodys_to_see_to_use_or_to_pay_for() -> None:
    async def story(move: Move) -> None:
        first = await boot(move, "web")
        template = await has_template(move)
        lyon = move.sites[LYON]
        listed = await lyon.perform("volume.list", ListVolumes(iaas="copied"))
        assert template.name not in str(listed)
        for name in (template.name, template.volume_id):
            with pytest.raises(NotFound):
                await lyon.perform("volume.delete", NameVolume("copied", name))
        assert lyon.index.usage(first.iaas_id).volume_bytes == first.size_bytes
        mark = MarkVolumes(iaas="copied", volume=first.name, name=IMAGE_MARK)
        with pytest.raises(InvalidRequest, match="image"):
            await lyon.perform("volume.mark", mark)

    play(story)


def test_a_template_goes_with_the_last_boot_volume_of_its_image() -> None:
    async def story(move: Move) -> None:
        await boot(move, "web")
        await has_template(move)
        await boot(move, "api")
        lyon = move.sites[LYON]
        await lyon.perform("vm.delete", NameVm("copied", "web"))
        await asyncio.sleep(10.0)
        assert len(templates(move)) == 1, "api could have started from it"
        await lyon.perform("vm.delete", NameVm("copied", "api"))
        await move.until(lambda: not any(lyon.index.values(Volume)), "nothing is left")
        await move.until(lambda: all(not len(i.kept()) for i in lyon.ionodes), "nor on disks")

    play(story)


def test_a_boot_volume_is_filled_where_its_template_was_lost() -> None:
    async def story(move: Move) -> None:
        first = await boot(move, "web", "stay")
        template = await has_template(move)
        await move.sites[LYON].ionodes[0].daemons[first.iaas_id].erase(template.volume_id)
        second = await boot(move, "api", "stay")
        assert second.origin is None
        assert filled_on_nodes_of(move, second.volume_id)

    play(story)


def test_a_template_that_the_contract_has_outgrown_is_replaced() -> None:
    async def story(move: Move) -> None:
        first = await boot(move, "web", "stay")
        template = await has_template(move)
        lyon = move.sites[LYON]
        await lyon.site.save(
            # As after a change of the contract that its volumes have followed.
            Iaas(
                iaas_id=first.iaas_id,
                name="stay",
                owner="ada",
                label=lyon.index.value(Iaas, first.iaas_id).label,
                contract=Contract(ack_policy=AckPolicy.ALL),
            )
        )
        await move.until(
            lambda: template.volume_id not in {t.volume_id for t in templates(move)}, "it goes"
        )
        second = await boot(move, "api", "stay")
        assert second.origin is None

    play(story)

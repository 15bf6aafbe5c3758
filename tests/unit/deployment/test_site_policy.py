"""A hospital's floors and its site file; and whole federations whose coordinator asks too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve, field, frozen

from cohortium import Federation, Guarantee
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import CohortiumError, RefusalError, RequestError, RunError
from cohortium.ledger.ledger import Ledger
from cohortium.messages.codec import decode_either
from cohortium.messages.run import Refusal, Reply
from cohortium.plugin import EngineSession, Randomness, SiteFactory, SiteHandle
from cohortium.privacy.accounting import ORDERS, RenyiBoundedMechanism
from cohortium.roles.events import RoundCompleted, SiteFailed
from cohortium.rounds.run_config import RunConfig
from cohortium.rounds.site import SimulatedSiteFactory, Site
from cohortium.storage.append_log import FileJournal, MemoryJournal
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.federations import QuadrantImages, RecordingObserver, tiny_federation

LENIENT: dict[str, Any] = {
    "epsilon": 10.0,
    "delta": 1e-3,
    "unit": "example",
    "against": "coordinator",
}

# Whole batches and whole updates: exact accounting, which takes no time.
SITE_LEVEL = Gaussian(epsilon=6.0, delta=1e-3, unit="site")
EXAMPLE_LEVEL = Gaussian(epsilon=6.0, delta=1e-3)
SHARED: dict[str, Any] = {
    "privatizer": Gaussian(epsilon=6.0, delta=1e-3, noise="distributed"),
    "trainer": FedSGD(sampling_rate=1.0),
    "aggregator": "secagg",
    "min_contributors": 5,
    "max_colluding": 1,
}


def study(**changes: Any) -> Federation:
    parts = {"privatizer": EXAMPLE_LEVEL, "trainer": FedSGD(sampling_rate=1.0)}
    return tiny_federation(**{**parts, **changes})


def run_config(**changes: Any) -> RunConfig:
    return study(**changes).prepare().run_config


@frozen
class Homemade:
    """A trainer of no plugin."""

    inner: FedSGD = field(factory=lambda: FedSGD(sampling_rate=1.0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def workload(self, federation_spec: Any) -> Any:
        return self.inner.workload(federation_spec)

    def train(self, task: Any, privatizer: Any) -> Any:
        return self.inner.train(task, privatizer)

    def make_server_optimizer(self, parameters: Any, rounds: int) -> Any:
        return self.inner.make_server_optimizer(parameters, rounds)

    def personalize(self, net: Any, state: Any) -> Any:
        return self.inner.personalize(net, state)


# --- One floor after the other -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floors", "asked", "floor", "words"),
    [
        ({}, {"privatizer": "none"}, "epsilon", "promises no privacy"),
        (
            {},
            {"insecure_seeded_secrets": True},
            "epsilon",
            "from a public seed, which protects nothing",
        ),
        (
            {"epsilon": 3.0},
            {},
            "epsilon",
            "2 attempts come to ε = 6, and this site allows ε = 3 at",
        ),
        ({"epsilon": 7.0, "delta": 1e-6}, {}, "epsilon", "site allows ε = 7 at δ = 1e-06 for"),
        ({"unit": "site"}, {}, "unit", "hides one example; this site hides one site"),
        ({"against": "everyone"}, SHARED, "against", "requires one against everyone"),
        ({"adversary": "active"}, {}, "adversary", "honest-but-curious, and this site one that is"),
        (
            {"min_cohort_size": 6},
            {"cohort_size": 5},
            "min_cohort_size",
            "asks 5 sites a round, and this site requires 6",
        ),
        ({"assumed_colluding": 2}, SHARED, "assumed_colluding", "assumes that 1 sites collude"),
        (
            {"min_contributors": 6},
            SHARED,
            "min_contributors",
            "in a sum of 5, and this site requires 6",
        ),
        (
            {"min_honest_contributors": 5},
            SHARED,
            "min_honest_contributors",
            "honest sites in a sum of 4, and this site requires 5",
        ),
        (
            {"min_reconstruction_threshold": 5},
            SHARED,
            "min_reconstruction_threshold",
            "threshold of 4, and this site requires 5",
        ),
        (
            {"min_reconstruction_threshold": 2},
            {},
            "min_reconstruction_threshold",
            "shows every release to the coordinator",
        ),
        ({"min_contributors": 2}, {}, "min_contributors", "shows every release to the coordinator"),
        (
            {"allowed_plugins": ("fedsgd", "cnn")},
            {},
            "allowed_plugins",
            r"GaussianPlan of gaussian \(cohortium",
        ),
        (
            {"allowed_plugins": ("cohortium",)},
            {"trainer": Homemade()},
            "allowed_plugins",
            "Homemade of no plugin",
        ),
        ({}, {"adversary": "active", "aggregator": "secagg"}, "directory", "has pinned none"),
    ],
)
def test_study_below_floor_is_refused_by_name(
    floors: Mapping[str, Any], asked: Mapping[str, Any], floor: str, words: str
) -> None:
    policy, agreed = SitePolicy(**{**LENIENT, **floors}), run_config(**asked)
    with pytest.raises(RefusalError, match=words) as error:
        policy.admit(agreed)
    assert error.value.code == f"policy.{floor}"
    assert error.value.reason.endswith(".")
    assert "\n" not in error.value.reason
    # It is the floor that refuses, and nothing else.
    if floors:
        SitePolicy(**LENIENT).admit(agreed)


@pytest.mark.parametrize(
    ("floors", "asked"),
    [
        ({"epsilon": 6.0}, {}),
        ({"allowed_plugins": ("fedsgd", "cnn", "gaussian", "plain")}, {}),
        ({"allowed_plugins": ("cohortium",)}, {}),
        ({"unit": "site"}, {"privatizer": SITE_LEVEL}),
        (
            {
                "min_contributors": 5,
                "min_honest_contributors": 4,
                "min_reconstruction_threshold": 4,
                "assumed_colluding": 1,
                "min_cohort_size": 6,
            },
            SHARED,
        ),
    ],
)
def test_study_at_floor_is_admitted(floors: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    SitePolicy(**{**LENIENT, **floors}).admit(run_config(**asked))


def test_only_pinned_directory_is_accepted() -> None:
    agreed = run_config(adversary="active", aggregator="secagg")
    assert agreed.directory is not None
    strict = {**LENIENT, "adversary": "active"}
    SitePolicy(**strict, directory=agreed.directory).admit(agreed)
    other = KeyDirectory(tuple(reversed(agreed.directory.keys)))
    with pytest.raises(RefusalError, match=r"is \w{16}…, and this site has pinned \w{16}…\.") as e:
        SitePolicy(**strict, directory=other).admit(agreed)
    assert e.value.code == "policy.directory"


def test_site_level_guarantee_converts_to_example_epsilon() -> None:
    # One site at ε = 6 is one example at more than that.
    agreed = run_config(privatizer=SITE_LEVEL)
    SitePolicy(**{**LENIENT, "unit": "site", "epsilon": 6.0}).admit(agreed)
    with pytest.raises(RefusalError, match=r"come to ε = 1[0-9]"):
        SitePolicy(**{**LENIENT, "epsilon": 6.0}).admit(agreed)


@frozen
class Curve:
    """A plan that is known by a curve for whole sites alone."""

    guarantee: Guarantee
    mechanism: RenyiBoundedMechanism
    length: int = 10
    initial_state: tuple[float, ...] = ()

    def at_round(self, number: int, state: tuple[float, ...]) -> Curve:
        del number, state
        return self


def test_guarantee_without_bound_for_unit_is_refused() -> None:
    agreed = run_config(privatizer=SITE_LEVEL)
    assert agreed.plan.guarantee is not None
    curve = RenyiBoundedMechanism(name="curve", bounds=(0.01,) * len(ORDERS))
    plan: Any = Curve(agreed.plan.guarantee, curve)
    odd = evolve(agreed, plan=plan)
    SitePolicy(**{**LENIENT, "unit": "site"}).admit(odd)
    with pytest.raises(RefusalError, match="knowledge of one site gives no bound for one example"):
        SitePolicy(**LENIENT).admit(odd)


# --- The file ------------------------------------------------------------------------------------

SITE = """
[site]
id = 2
dataset_id = "squares of 2024"
{site}

[dataset]
name = "npz"
path = "{path}"

[policy]
epsilon = 10.0
delta = 1e-3
unit = "example"
against = "coordinator"
{policy}
"""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each site's images, as files of its own."""
    folder = tmp_path_factory.mktemp("images")
    train = QuadrantImages().load().train
    for site in range(6):
        mine = train.select(np.arange(site, len(train), 6))
        np.savez(
            folder / f"{site}.npz",
            train_images=mine.images[:, 0],
            train_labels=mine.labels,
            test_images=mine.images[:4, 0],
            test_labels=mine.labels[:4],
        )
    return folder


def site_file(
    folder: Path, images: Path, number: int = 2, policy: str = "", site: str = ""
) -> Path:
    path = folder / "site.toml"
    text = SITE.format(path=images / f"{number}.npz", policy=policy, site=site)
    path.write_text(text.replace("id = 2", f"id = {number}"))
    return path


def test_site_file_is_read_completely(tmp_path: Path, images: Path) -> None:
    keys = [SigningKey.generate(Randomness.insecure_from_seed(1).derive(site)) for site in range(3)]
    KeyDirectory(tuple(key.public for key in keys)).write(tmp_path / "sites.txt")
    path = site_file(
        tmp_path,
        images,
        policy=(
            'adversary = "active"\nmin_honest_contributors = 4\n'
            'allowed_plugins = ["fedsgd", "secagg"]'
        ),
        site='ledger = "spent.sqlite"\nkey_directory = "sites.txt"\nsigning_key = "key.pem"',
    )
    site_config = SiteConfig.read(path)
    assert (site_config.id, site_config.dataset_id) == (2, "squares of 2024")
    assert site_config.policy == SitePolicy(
        **LENIENT,
        adversary="active",
        min_honest_contributors=4,
        allowed_plugins=("fedsgd", "secagg"),
        directory=KeyDirectory(tuple(key.public for key in keys)),
    )
    account = site_config.account
    assert account.ledger == Ledger(tmp_path / "spent.sqlite")
    assert str(account.budget) == "ε = 10 at δ = 0.001 for one example against the coordinator"
    assert account.ledger.is_synced
    assert len(site_config.dataset.load().train) == 40


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilon = 10.0", "epsilom = 10.0", r"\[policy\] epsilom: .* did you mean epsilon\?"),
        ("epsilon = 10.0", "", "the policy needs epsilon"),
        ("epsilon = 10.0", "epsilon = 0", "'epsilon' must be > 0"),
        ("epsilon = 10.0", "epsilon = true", "epsilon: expected float, got True"),
        ('unit = "example"', 'unit = "image"', "expected 'example' or 'patient' or 'site'"),
        ('against = "coordinator"', "", "the policy needs against"),
        (
            "delta = 1e-3",
            "delta = 1e-3\nmin_honest_contributors = -1",
            "'min_honest_contributors' must be >= 0",
        ),
        (
            "delta = 1e-3",
            'delta = 1e-3\nallowed_plugins = "all"',
            "allowed_plugins: expected a list",
        ),
        ("delta = 1e-3", 'delta = 1e-3\ndirectory = "x"', "directory: .* no such parameter"),
        ("id = 2", "", "the site needs id"),
        ("id = 2", "id = -2", "'id' must be >= 0"),
        ('dataset_id = "squares of 2024"', 'dataset_id = ""', "dataset_id"),
        ('dataset_id = "squares of 2024"', "", "the site needs dataset_id"),
        ("id = 2", "id = 2\nledgr = 'x'", r"\[site\] ledgr: .* did you mean ledger\?"),
        ("id = 2", "id = 2\nfolder = '/'", "folder: .* no such parameter"),
        ("id = 2", "id = 2\nkey_directory = 'gone'", "cannot read the directory .*gone"),
        ("id = 2", "id = 2\nkey_directory = 7", "key_directory: expected str, got 7"),
        ('name = "npz"', 'name = "npy"', "no plugin offers the dataset 'npy'"),
        ("[policy]", "[polcy]", r"has no \[polcy\]; did you mean policy\?"),
        ("[site]", "[dataset.site]", "needs a table \\[site\\]"),
        ("[site]", "site", "is not valid TOML"),
    ],
)
def test_invalid_site_file_gives_one_sentence(
    tmp_path: Path, images: Path, old: str, new: str, words: str
) -> None:
    path = site_file(tmp_path, images)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CohortiumError, match=words) as error:
        SiteConfig.read(path)
    assert str(path) in str(error.value) or "gone" in str(error.value) or "npy" in words
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_missing_site_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the site file .*: No such file"):
        SiteConfig.read(tmp_path / "site.toml")


# --- A federation of hospitals -------------------------------------------------------------------


@frozen(eq=False)
class Hospitals:
    """The inline engine for hospitals: those with a site file are made of it.

    One that refuses to take part says so to whatever it is asked.  `sent` has every reply.
    """

    files: Mapping[int, Path]
    sent: list[tuple[int, bytes]] = field(factory=list)
    before: Callable[[int], None] = lambda _exchange: None
    journals: list[FileJournal] = field(factory=list)

    def connect(self, sites: Mapping[int, SiteFactory] | None) -> EngineSession:
        assert sites is not None
        return HospitalsSession(
            {site: self.made(site, recipe) for site, recipe in sites.items()}, self
        )

    def made(self, site: int, recipe: SiteFactory) -> SiteHandle:
        if site not in self.files:
            return recipe.create()
        assert isinstance(recipe, SimulatedSiteFactory)
        site_config = SiteConfig.read(self.files[site])
        assert site_config.id == site
        self.journals.append(site_config.open_journal())
        try:
            return site_config.open(recipe.run_config, self.journals[-1])
        except RefusalError as refusal:
            return Absent(refusal)


@frozen
class Absent:
    refusal: RefusalError

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        from cohortium.messages.codec import encode

        return encode(Refusal(0, 0, self.refusal.code, self.refusal.reason))


class HospitalsSession:
    def __init__(self, sites: Mapping[int, SiteHandle], engine: Hospitals) -> None:
        self.sites, self.engine, self.count = sites, engine, -1

    def exchange(
        self, broadcast: bytes, per_site: Mapping[int, bytes], timeout: float | None = None
    ) -> Iterator[tuple[int, bytes]]:
        self.count += 1
        self.engine.before(self.count)
        for site, own in per_site.items():
            reply = self.sites[site].answer(broadcast, own)
            self.engine.sent.append((site, reply))
            yield site, reply

    def close(self) -> None:
        self.sites = {}
        for journal in self.engine.journals:
            journal.close()


def spent(path: Path) -> int:
    with SiteConfig.read(path).account.ledger.read_transaction() as book:
        return sum(book.charge_counts("squares of 2024").values())


def replies(engine: Hospitals, site: int) -> list[Reply | Refusal]:
    return [decode_either(reply, Reply, Refusal) for who, reply in engine.sent if who == site]


@pytest.mark.parametrize(
    ("policy", "asked", "words"),
    [
        ("epsilon = 5.0", {}, "come to ε = 6, and this site allows ε = 5 at"),
        ('unit = "site"', {}, "hides one example; this site hides one site"),
        ('against = "everyone"', SHARED, "requires one against everyone"),
        ("min_contributors = 7", SHARED, "in a sum of 6, and this site requires 7"),
        (
            'allowed_plugins = ["cnn", "gaussian", "plain"]',
            {},
            "uses cohortium_fedsgd:FedSGD of fedsgd",
        ),
        (
            "epsilon = 6.0",
            {"retries": 0, "rounds": 2, "insecure_seeded_secrets": True},
            "public seed",
        ),
    ],
)
def test_excessive_request_is_refused_with_reason(
    tmp_path: Path, images: Path, policy: str, asked: Mapping[str, Any], words: str
) -> None:
    path = site_file(tmp_path, images)
    key = policy.partition(" =")[0]
    kept = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} =")]
    path.write_text("\n".join([*kept, policy]))
    SiteConfig.read(path).account.ledger.create()
    engine = Hospitals({2: path})
    with pytest.raises(RunError, match="round 1 failed") as error:
        study(engine=engine, **{**asked, "min_contributors": 6}).run()
    assert words in str(error.value)
    assert "Site 2: the study" in str(error.value)
    assert all(isinstance(reply, Refusal) for reply in replies(engine, 2))
    assert spent(path) == 0


def test_another_directory_is_refused_with_the_reason(tmp_path: Path, images: Path) -> None:
    keys = [SigningKey.generate(Randomness.insecure_from_seed(1).derive(site)) for site in range(6)]
    KeyDirectory(tuple(key.public for key in keys)).write(tmp_path / "sites.txt")
    keys[2].create(tmp_path / "key.pem")
    path = site_file(tmp_path, images, site='key_directory = "sites.txt"\nsigning_key = "key.pem"')
    SiteConfig.read(path).account.ledger.create()
    engine = Hospitals({2: path})
    with pytest.raises(RunError, match=r"Site 2: the study's directory of keys is .* has pinned"):
        study(engine=engine, aggregator="secagg", adversary="active", min_contributors=6).run()
    assert all(isinstance(reply, Refusal) for reply in replies(engine, 2))
    assert spent(path) == 0


def test_run_continues_without_refusing_site(tmp_path: Path, images: Path) -> None:
    path = site_file(tmp_path, images, policy="min_cohort_size = 9")
    SiteConfig.read(path).account.ledger.create()
    recorder = RecordingObserver()
    result = study(engine=Hospitals({2: path}), rounds=1).run(observers=[recorder])
    assert result.history[0].dropped == (2,)


@pytest.mark.parametrize("aggregator", ["plain", pytest.param("secagg", marks=pytest.mark.slow)])
def test_run_on_site_files_is_fully_charged(tmp_path: Path, images: Path, aggregator: str) -> None:
    paths = {}
    for site in range(6):
        (tmp_path / str(site)).mkdir()
        paths[site] = site_file(tmp_path / str(site), images, site)
        paths[site].write_text(paths[site].read_text().replace("epsilon = 10.0", "epsilon = 8.0"))
        SiteConfig.read(paths[site]).account.ledger.create()
    engine = Hospitals(paths)
    result = study(engine=engine, aggregator=aggregator, rounds=2).run()
    assert all(event.contributors == tuple(range(6)) for event in result.history)
    assert result.guarantee is not None
    for path in paths.values():
        account = SiteConfig.read(path).account
        with account.ledger.read_transaction() as book:
            costs = book.charge_counts("squares of 2024")
        assert sum(costs.values()) == 2
        assert account.budget is not None
        spends = account.budget.scope.epsilon(costs, result.guarantee.delta)
        assert spends == pytest.approx(result.guarantee.epsilon)
    # A second run of that size does not fit in ε = 8, and is refused at its start.
    with pytest.raises(RunError, match="2 more attempts would make it"):
        study(engine=Hospitals({4: paths[4]}), rounds=2, min_contributors=6).run()
    assert spent(paths[4]) == 2


def test_run_alone_has_the_whole_budget_reserved(tmp_path: Path, images: Path) -> None:
    guarantee = run_config(rounds=2).plan.guarantee
    assert guarantee is not None
    path = site_file(tmp_path, images)
    limit = f"epsilon = {guarantee.epsilon * 1.0001}"
    path.write_text(path.read_text().replace("epsilon = 10.0", limit))
    account = SiteConfig.read(path).account
    account.ledger.create()
    assert account.budget is not None
    assert not account.budget.holds_adaptively(run_config(rounds=2).costs())
    result = study(engine=Hospitals({2: path}), rounds=2).run()
    assert [event.dropped for event in result.history] == [(), ()]
    with account.ledger.read_transaction() as book:
        reserved = book.reservation("squares of 2024")
    assert reserved is not None
    assert reserved.plan == run_config(rounds=2).costs()
    with pytest.raises(RunError, match="it is reserved for the plan of a run before"):
        study(engine=Hospitals({2: path}), rounds=1, min_contributors=6).run()
    assert spent(path) == 2


def test_overspending_run_stops_before_that_round(tmp_path: Path, images: Path) -> None:
    path = site_file(tmp_path, images)
    path.write_text(path.read_text().replace("epsilon = 10.0", "epsilon = 7.0"))
    account = SiteConfig.read(path).account
    account.ledger.create()
    (cost,) = run_config(rounds=5).costs()
    assert account.budget is not None

    def another_run(exchange: int) -> None:
        # It was admitted when this one was, and both cannot go to their end.
        with suppress(RefusalError):
            SiteConfig.read(path).account.charge(b"another run's id", exchange, exchange, cost)

    engine = Hospitals({2: path}, before=another_run)
    recorder = RecordingObserver()
    with pytest.raises(RunError, match=r"Site 2: the site's budget is ε = 7 .* one more attempt"):
        study(engine=engine, rounds=5, min_contributors=6).run(observers=[recorder])
    finished = [event for event in recorder.events if isinstance(event, RoundCompleted)]
    assert 0 < len(finished) < 5
    found = replies(engine, 2)
    assert [isinstance(reply, Reply) for reply in found] == [True] * len(finished) + [False]
    (failure,) = [event for event in recorder.events if isinstance(event, SiteFailed)]
    assert (failure.site, failure.code, failure.round) == (2, "budget", len(finished))
    with account.ledger.read_transaction() as book:
        others = book.attempts("squares of 2024", b"another run's id")
        costs = book.charge_counts("squares of 2024")
    assert sum(costs.values()) == len(finished) + len(others)
    assert len(others) in (len(finished), len(finished) + 1)
    assert account.budget.holds_adaptively(costs)
    assert not account.budget.holds_adaptively(costs + type(costs)([cost]))


# --- One site ------------------------------------------------------------------------------------


def recipe(tmp_path: Path, **changes: Any) -> SimulatedSiteFactory:
    ready = study(**changes).prepare()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.create()
    return ready.site_factory(2, ledger)


def first_request(agreed: RunConfig) -> bytes:
    from cohortium.rounds.coordinator import Coordinator

    coordinator = Coordinator(agreed)
    coordinator.begin_attempt(0, 0, range(6))
    return coordinator.next_requests().broadcast


def code(reply: bytes) -> str:
    message = decode_either(reply, Reply, Refusal)
    return message.code if isinstance(message, Refusal) else "answered"


def test_restarted_site_does_not_release_again(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    broadcast = first_request(made.run_config)
    assert code(made.create().answer(broadcast, b"")) == "answered"
    # A restarted site has forgotten that it answered; with other noise it would pay twice.
    assert code(made.create().answer(broadcast, b"")) == "out-of-order"


class Breaks(FedSGD):
    """Fails while it trains."""

    def train(self, task: Any, privatizer: Any) -> Any:
        raise RefusalError("odd", "something about the data.")


def test_refusal_after_training_is_charged(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    made = evolve(made, run_config=evolve(made.run_config, trainer=Breaks(sampling_rate=1.0)))
    assert code(made.create().answer(first_request(made.run_config), b"")) == "odd"
    with Ledger(tmp_path / "ledger.sqlite").read_transaction() as book:
        assert len(book.attempts("site 2", made.run_config.session)) == 1


def test_unchargeable_attempt_is_not_trained(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    made = evolve(made, run_config=evolve(made.run_config, trainer=Breaks(sampling_rate=1.0)))
    site = made.create()
    (tmp_path / "ledger.sqlite").unlink()
    assert code(site.answer(first_request(made.run_config), b"")) == "ledger"


def test_changed_site_data_gives_warning(tmp_path: Path, images: Path) -> None:
    path = site_file(tmp_path, images)
    SiteConfig.read(path).account.ledger.create()
    agreed = run_config()

    def opened() -> Site:
        return SiteConfig.read(path).open(agreed, MemoryJournal())

    assert opened().warnings == ()
    assert opened().warnings == ()
    text = path.read_text()
    path.write_text(text.replace("2.npz", "3.npz"))
    (warning,) = opened().warnings
    assert "the data called 'squares of 2024' have changed" in warning


def test_simulation_writes_ledger_in_run_folder(tmp_path: Path) -> None:
    result = study(rounds=2).run(tmp_path / "run")
    with Ledger(tmp_path / "run" / "ledger.sqlite").read_transaction() as book:
        assert book.names() == [f"site {site}" for site in range(6)]
        for name in book.names():
            ((cost, times),) = book.charge_counts(name).items()
            assert times == 2
            assert result.guarantee is not None
            assert (cost.unit, cost.against) == ("example", "everyone")
    study(privatizer="none").run(tmp_path / "bare")
    assert not (tmp_path / "bare" / "ledger.sqlite").exists()

import torch

from training.sampling import Sampler

COUNT, STEPS, SIZE = 100, 10, 10


def sampler(hard_share: float) -> Sampler:
    return Sampler(COUNT, hard_share, torch.device("cpu"))


def epoch(drawn_by: Sampler, seed: int = 0) -> torch.Tensor:
    order = torch.Generator().manual_seed(seed)
    return torch.stack(list(drawn_by.batches(STEPS, SIZE, order)))


def know_all_but(instance: int, drawn_by: Sampler) -> None:
    """Tell the sampler that the network is right about all instances but one."""
    labels = torch.zeros(COUNT, dtype=torch.int64)
    logits = torch.tensor([[20.0, 0.0]]).repeat(COUNT, 1)
    logits[instance] = torch.tensor([0.0, 20.0])
    for _ in range(20):
        drawn_by.update(torch.arange(COUNT), logits, labels)


def test_without_hard_ones_each_instance_comes_once() -> None:
    indices = epoch(sampler(0.0))
    assert indices.shape == (STEPS, SIZE)
    assert indices.flatten().sort().values.equal(torch.arange(COUNT))


def test_the_hard_ones_come_first_in_each_batch_and_the_others_in_turn() -> None:
    drawn_by = sampler(0.4)
    know_all_but(17, drawn_by)
    indices = epoch(drawn_by)
    assert indices.shape == (STEPS, SIZE)
    assert (indices[:, :4] == 17).all()
    in_turn = indices[:, 4:].flatten()
    assert len(in_turn.unique()) == len(in_turn)


def test_a_state_continues_with_the_same_batches() -> None:
    drawn_by, other = sampler(0.4), sampler(0.4)
    know_all_but(17, drawn_by)
    assert not epoch(other, seed=1).equal(epoch(drawn_by, seed=1))
    other.load_state_dict(drawn_by.state_dict())
    assert epoch(other, seed=2).equal(epoch(drawn_by, seed=2))

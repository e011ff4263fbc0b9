from planner.report.terms import Work, joined_layers, merged_rows, products, work_kind
from planner.report.words import attention_words, ffn_words, grid_words, plan_words
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.stages import Choice, StageChoice
from tests.planner.report.small import tiny_result
from tests.search_spaces.small import small_sizes

SIZES = small_sizes(
    heads=16, kv_heads=16, head_dim=512, kind_of_device=(0,) * 16, domain_of_device=(0,) * 8 + (1,) * 8, batch=64
)


def test_the_grid_spells_out_what_a_gpu_holds():
    grid = AttentionPartition(head_groups=4, dimension_segments=4)
    assert grid_words(grid, SIZES) == "4 head groups (4 heads each) x 4 dimension segments (128 of 512 head dims each)"
    assert grid_words(AttentionPartition(), SIZES) == "all 16 heads"
    assert grid_words(AttentionPartition(head_groups=3), SIZES) == "3 head groups (1 of 6 heads, 2 of 5 heads)"


def test_scores_that_nobody_sums_are_named():
    unsummed = AttentionPartition(head_groups=4, dimension_segments=4, score_reduce=False)
    assert any("NOT summed" in line for line in attention_words(unsummed, SIZES))


def test_experts_of_their_own():
    sizes = small_sizes(
        dense=False, moe=True, experts=16, expert_hidden=64, kind_of_device=(0,) * 16, domain_of_device=(0,) * 16
    )
    stage = StageChoice(
        2, tuple(range(16)), AttentionPartition(12), 12, ExpertPlacement("separate", devices=4, router_side="expert")
    )
    text = "; ".join(ffn_words(stage, sizes))
    assert (
        "GPUs 12-15" in text and "GPUs 0-11" in text and "router on the expert side" in text and "4 of 16 on each GPU" in text
    )


def test_a_plan_is_one_line():
    stages = (
        StageChoice(1, tuple(range(8)), AttentionPartition(8), 8),
        StageChoice(1, tuple(range(8, 16)), AttentionPartition(8), 8),
    )
    text = plan_words(Choice(1, 16, stages), SIZES)
    assert "\n" not in text
    assert "2 stages (layer 0 on GPUs 0-7; layer 1 on GPUs 8-15)" in text and "16 micro-batches of 4 sequences" in text


def test_many_stages_stay_short():
    stages = tuple(StageChoice(1, (i,)) for i in range(16))
    assert "16 stages (1 layer on 1 GPU each)" in plan_words(Choice(1, 4, stages), SIZES)


def test_terms_become_products():
    (plain,) = products("Get_Time(80000, 8192, 1024)")
    assert (plain.m, plain.k, plain.n, plain.flops) == (80000, 8192, 1024, 2 * 80000 * 8192 * 1024)
    (grouped,) = products("Get_Time(2048, 4096, 16384, groups=4, dtype=fp8)")
    assert grouped.batch == 4 and grouped.flops == 8 * 2048 * 4096 * 16384
    scores, values = products("Attention(8, 2, 2, 100, 100, 64, 32)")
    assert (scores.m, scores.k, scores.n, scores.batch) == (100, 64, 100, 16) and (values.k, values.n) == (100, 32)
    assert products("Memory(100)") == [] and products("not a term") == []


def test_kinds_of_work():
    assert work_kind("Get_Time(1, 1, 1)") == Work.PRODUCTS and work_kind("Memory(5)") == Work.MEMORY
    assert work_kind("AllReduce(5, ranks=8, domains=1)") == Work.INSIDE
    assert work_kind("AllReduce(5, ranks=16, domains=2)") == Work.BETWEEN
    assert work_kind("Transfer(5, 5, 8, 8, 1)") == Work.BETWEEN and work_kind("Transfer(5, 5, 8, 8, 0)") == Work.INSIDE


def test_merged_rows_keep_every_second():
    items = tiny_result().evaluation.critical_path
    rows = merged_rows(items)
    assert len(rows) < len(items) or len(rows) == len({(i.op, i.stage, i.device, i.term) for i in items})
    assert sum(r.seconds for r in rows) == sum(i.seconds for i in items) and sum(r.count for r in rows) == sum(
        i.count for i in items
    )
    assert joined_layers(["0-2", "4", "head", "3"]) == "0-4, head"

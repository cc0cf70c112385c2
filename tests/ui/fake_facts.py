"""What the scripted engine knows: one base, one data set."""

from backend import results as rs
from backend.settings import STARTER

FACTS = rs.ModelFacts(
    name="starter",
    source="starter",
    path=str(STARTER / "model"),
    architecture="LlamaForCausalLM",
    parameters=3_850_000,
    layers=4,
    hidden_size=256,
    vocabulary=4096,
    context_length=512,
    precision="fp32",
    precision_reason="exact on a processor",
    device="cpu",
    tied_embeddings=True,
    chat_template=True,
    memory_predicted_bytes=15_400_000,
    memory_measured_bytes=15_900_000,
    fingerprint="abc123",
    seconds=0.2,
)
STATS = rs.DataStats(
    shape="messages",
    shape_reason="every row has messages",
    rows=600,
    examples=550,
    held_out=50,
    tokens=33_000,
    learned_tokens=9_900,
    longest=61,
    median=33,
    cut=0,
    dropped=0,
)


def evaluation(loss: float, exact_match: float) -> rs.Evaluation:
    return rs.Evaluation(
        loss=loss, exact_match=exact_match, token_accuracy=exact_match, examples=50, tokens=600
    )

"""Graphs as people and programs write them, each in its own habit."""

from __future__ import annotations

# Frames for GPUs, a label of several lines with named sizes, ellipses for communication; sound.
HELIX = r"""
// Multi-head attention on two GPUs
digraph helix_mha {
    graph [rankdir=TB, splines=ortho, compound=true, label="MHA layer 0"];
    node [shape=rectangle, style=filled, fillcolor=lightblue];
    model_input [label="Model Input\nInput: [batch_size=8, seq_len=1000, hidden_dim=1024]\nGPU: all GPUs", shape=ellipse];
    subgraph cluster_gpu_0 {
        label="GPU 0"; style=dashed;
        q_proj_0 [label="Q Projection\nInput: [batch_size=8, seq_len=1000, hidden_dim=1024]\nOutput: [8, 1000, h=4, d_k=128]"];
        scores_0 [label="QK^T\nInput: [8, 1000, 4, 128]\nOutput: [8, 4, 1000, 1000]\nm=1000, k=128, n=1000, batch=32"];
        softmax_0 [label="Softmax\nInput: [8, 4, 1000, 1000]\nOutput: [8, 4, 1000, 1000]"];
        out_0 [label="Attention x V\nInput: [8, 4, 1000, 1000]\nOutput: [8, 1000, 512]"];
    }
    subgraph cluster_gpu_1 {
        label="GPU 1";
        q_proj_1 [label=<<b>Q Proj</b><br/>Input: [8, 1000, 1024]<br/>Output: [8, 1000, 512]<br/>Get_Time(8×1000, 1024, 512)>];
    }
    concat [label="Concat heads\nInput: [8, 1000, 512]\nOutput: [8, 1000, 1024]\nGPUs 0,1", shape=parallelogram];
    reduce [label="All-Reduce\nInput: [8, 1000, 1024]\nOutput: [8, 1000, 1024]", shape=ellipse];
    model_output [label="Model Output\nOutput: [8, 1000, 1024]"];
    model_input -> {q_proj_0 q_proj_1};
    q_proj_0 -> scores_0 -> softmax_0 -> out_0 -> concat;
    q_proj_1 -> concat [label="[8, 1000, 512]"];
    concat -> reduce -> model_output;
}
"""

# As graphviz for Python writes it: a tab before each line, quotes only where needed, labels alone.
PYTHON = (
    "digraph MLP {\n"
    "\tgraph [rankdir=LR]\n"
    '\tinput [label="Input\\n(1024x8192)"]\n'
    '\tfc1_gpu0 [label="FC1 (gpu0)\\nm=1024, k=8192, n=16384" shape=box]\n'
    '\tfc1_gpu1 [label="FC1 (gpu1)\\nm=1024, k=8192, n=16384" shape=box]\n'
    '\tgelu_gpu0 [label="GELU\\n[1024, 16384]" shape=box]\n'
    '\tgelu_gpu1 [label="GELU\\n[1024, 16384]" shape=box]\n'
    '\tfc2_gpu0 [label="(1024x16384) @ (16384x8192)" shape=box]\n'
    '\tfc2_gpu1 [label="Linear(16384, 8192)\\nInput: [1024, 16384]" shape=box]\n'
    '\tallreduce [label="all_reduce\\n16.8 MB"]\n'
    "\tinput -> fc1_gpu0\n\tinput -> fc1_gpu1\n\tfc1_gpu0 -> gelu_gpu0\n\tfc1_gpu1 -> gelu_gpu1\n"
    "\tgelu_gpu0 -> fc2_gpu0\n\tgelu_gpu1 -> fc2_gpu1\n\tfc2_gpu0 -> allreduce\n\tfc2_gpu1 -> allreduce\n"
    "}\n"
)

# Records, attributes instead of words, ports, ranks, one graph per pipeline stage.
RECORDS = r"""
digraph "pipeline" {
  node [shape=record];
  { rank=same; embed; head; }
  embed [label="{<in> Embedding|Output: [16, 4096]}", device=0];
  layer0 [label="{Linear|{Input: [16, 4096]|W: [4096, 4096]}}", device="0"];
  send01 [label="{Send|GPU 0 to GPU 4|131072 bytes}"];
  layer1 [label="{Linear|Input: [16, 4096]|Weight: [1024, 4096]}", gpu="4"];
  norm [label="{LayerNorm|Input: [16, 1024]}", device=4, output_shape="[16, 1024]"];
  head [label="{fc|m=16, k=1024, n=50000}", rank=4];
  embed:out -> layer0:in:n;
  layer0 -> send01 -> layer1 -> norm -> head;
}
"""

# Everything goes wrong: a circle, sizes that do not fit, a misspelt name, a loose node, two GPUs, symbols.
BROKEN = r"""
digraph broken {
  input [label="Input [4, 8]"];
  subgraph cluster_0 { label="GPU 0";
    a [label="FC1\nInput: [4, 8]\nOutput: [4, 32]\nGPU 3"];
    b [label="FC2\nInput: [4, 16]\nWeight: [32, 8]\nOutput: [4, 8]"];
    c [label="LayerNorm\nInput: [4, 8]\nOutput: [4, 6]"];
  }
  alone [label="Router [B, S, E]"];
  late [label="GELU\nInput: [4, 8]\nOutput: [4, 8]"];
  later [label="Add\nInput: [8, 4]\nOutput: [8, 4]"];
  input -> a -> b -> c -> a;
  c -> outptu;
  late -> later;
}
"""

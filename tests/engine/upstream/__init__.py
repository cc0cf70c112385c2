"""Faults of the libraries that give wrong results without an error; a failure here is good news.

Each test asserts what PEFT 0.21.2, Transformers 5.23, Accelerate 1.15 or bitsandbytes 0.50.2 does
wrong, and names what of ours may go or become simpler once it is mended (`assert_still`). Two more
stand beside what they guard: test_combine (rsLoRA), test_quantization (bitsandbytes).
Not here, for want of what they need: faults on GPUs; optimum-quanto (a merge drops the adapter),
torchao and GPTQ, which are not installed; trl, which only benchmarks use; CorDA and LoftQ, whose
packages are not installed either.
"""

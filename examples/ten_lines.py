"""A GPT of your own in ten lines: a tokenizer, a model, training, text, and the saved model again.

python examples/ten_lines.py MY_TEXT.txt
"""

import sys
from pathlib import Path

import bimo

texts = Path(sys.argv[1]).read_text(encoding="utf-8").split("\n\n")
tokenizer = bimo.Tokenizer.train(texts, vocab_size=1024)
spec = bimo.ModelSpec(vocab_size=tokenizer.vocab_size, n_layers=2, n_heads=4, d_model=128, context_length=128)
model = bimo.LM(bimo.GPT(spec), tokenizer)
bimo.Trainer(model, bimo.TrainingSettings(learning_rate=3e-3, warmup_steps=10)).fit(texts, epochs=2)
print(model.generate("Once upon", max_tokens=40, temperature=0.8, seed=1))
model.save("runs/ten_lines")
print(bimo.load("runs/ten_lines").generate("Once upon", max_tokens=40, temperature=0))

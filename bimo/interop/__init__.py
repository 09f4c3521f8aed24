"""Weights of others, both ways: a bimo model is written so that other tools open it as it lies."""

from bimo.interop.huggingface import load_model, save_model

__all__ = ["load_model", "save_model"]

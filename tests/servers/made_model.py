"""A model of which only the sizes exist."""

MODEL_CONFIG = """{"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}"""

"""Claim verification: the example program of the StickyInvoc paper (Phung and Thain, Figure 5)."""

from pathlib import Path

from parsl import load_variable_from_state_manager, python_app


# The sticky task calls this function once per node. Its result is the state that stays on the node.
def load_model(model_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        "model": AutoModelForCausalLM.from_pretrained(model_path).eval(),
        "tokenizer": AutoTokenizer.from_pretrained(model_path),
    }


# A call of this function is an invocation task, which uses the state of the sticky task.
@python_app
def infer_model(claims, parsl_spec):
    model = load_variable_from_state_manager("model")
    tokenizer = load_variable_from_state_manager("tokenizer")
    verdicts = []
    for claim in claims:
        prompt = tokenizer(f"Claim: {claim}\nVerdict:", return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        verdicts.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    return verdicts


model_path = str(Path(__file__).resolve().parent.parent / "promptverify" / "model")
claims = ["the river flows north", "nobody has seen the river since 1908"]
# The sticky task consists of this function and these arguments.
parsl_spec = {"template": {"fn": load_model, "args": [model_path], "kwargs": {}}}
# The argument parsl_spec tells which sticky task the invocation task needs.
print(infer_model(claims, parsl_spec).result())

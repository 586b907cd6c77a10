import evaluate
from evaluate.utils import launch_gradio_widget


module = evaluate.load("self_consistency.py")
launch_gradio_widget(module)

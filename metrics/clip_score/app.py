import evaluate
from evaluate.utils import launch_gradio_widget


module = evaluate.load("clip_score.py")
launch_gradio_widget(module)

"""What the tools' scripts of the start-up bench share: the batch and the settings. Standard library only."""

BATCH_SIZE = 16
SIDE = 224
NUM_CLASSES = 10
IMAGES_A_CLASS = 32
NUM_EPOCHS = 1000
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.03

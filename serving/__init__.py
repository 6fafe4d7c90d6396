from common.tensorflow_start import lean

lean()

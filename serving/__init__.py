from common.keras_start import lean

lean()

set(relu2 KERNEL relu2 CASE bfloat16)
add_planted_bug(past_the_row ${relu2}
  ORIGINAL "if (column >= params.columns) continue;" PLANTED "if (column > params.columns) continue;"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(bias_of_another_column ${relu2}
  ORIGINAL "biases.load(bias + column)" PLANTED "biases.load(bias + first)"
  REPORT "MISMATCH")
add_planted_bug(vectors_at_any_address ${relu2}
  ORIGINAL " is_aligned(params.x) &&" PLANTED ""
  REPORT "SIMT ERROR: a 16-byte access to an address that is not a multiple of 16")
add_planted_bug(rows_that_no_block_takes KERNEL relu2 CASE float32
  ORIGINAL "row += gridDim.y" PLANTED "row += gridDim.y + 1"
  REPORT "MISMATCH")

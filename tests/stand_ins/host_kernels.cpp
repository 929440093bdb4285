// Compiles kernels.cu for the host: one C function per kernel, called by host_kernels.py.

#include "host_shim.h"

#include "kernels.cu"

#define RVOS_MASK_ARGUMENTS                                                                      \
  logits, masks, map_height, map_width, row_first, row_count, row_weights, row_most,             \
      column_first, column_count, column_weights, column_most, height, width, output

extern "C" void host_rvos_pack_masks(int grid, int block, RVOS_MASK_PARAMETERS) {
  launch(dim3(grid), dim3(block), [&] { rvos_pack_masks(RVOS_MASK_ARGUMENTS); });
}

extern "C" void host_rvos_upsample_masks(int grid, int block, RVOS_MASK_PARAMETERS) {
  launch(dim3(grid), dim3(block), [&] { rvos_upsample_masks(RVOS_MASK_ARGUMENTS); });
}

extern "C" void host_rvos_flag_rows(int grid, int block, const float* logits, int rows, int width,
                                    unsigned char* output) {
  launch(dim3(grid), dim3(block), [&] { rvos_flag_rows(logits, rows, width, output); });
}

extern "C" void host_rvos_preprocess(int grid, int block, RVOS_PREPROCESS_PARAMETERS) {
  launch(dim3(grid), dim3(block), [&] {
    rvos_preprocess(frame, frame_width, row_first, row_count, row_weights, row_most, column_first,
                   column_count, column_weights, column_most, content_height, content_width, height,
                   width, padding, output);
  });
}

#define RVOS_STACK_ARGUMENTS addresses, words, total, output

extern "C" void host_rvos_copy_vectors(int grid, int block, RVOS_COPY_PARAMETERS(uint4)) {
  launch(dim3(grid), dim3(block), [&] { rvos_copy_vectors(RVOS_STACK_ARGUMENTS); });
}

extern "C" void host_rvos_copy_bytes(int grid, int block, RVOS_COPY_PARAMETERS(unsigned char)) {
  launch(dim3(grid), dim3(block), [&] { rvos_copy_bytes(RVOS_STACK_ARGUMENTS); });
}

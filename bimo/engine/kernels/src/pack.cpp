// GGUF's blocks as panels, and single rows as float32.
//
// A panel holds `width` rows. For each group of 32 inputs it holds the scales of all its rows (halves), then the minima
// where the format has them, then the numbers: 8 vectors, vector v having inputs 4v … 4v+3 of each row in turn, as bytes;
// with four bits, vector v + 4 lies in the high halves of vector v's bytes. The K formats have their halves once for 8
// groups, and bytes of scales for each group; Q6_K has two more bits for each number behind the low four.
#include <cstring>

#include "types.h"

namespace bimo {

namespace {

struct Layout {
  int super;       // groups that share a head
  int head_halves; // halves for each row in a head
  int group_halves, group_bytes, group_vectors;
};

constexpr Layout LAYOUTS[N_FORMATS] = {
    {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0},  // the float formats
    {1, 0, 1, 0, 8},                                    // Q8_0
    {1, 0, 1, 0, 4},                                    // Q4_0
    {1, 0, 2, 0, 4},                                    // Q4_1
    {SUPER, 2, 0, 2, 4},                                // Q4_K
    {SUPER, 1, 0, 2, 6},                                // Q6_K
};

size_t group_size(const Layout& l, int width) {
  return size_t(width) * (2 * l.group_halves + l.group_bytes + 4 * l.group_vectors);
}
size_t super_size(const Layout& l, int width) { return size_t(width) * 2 * l.head_halves + l.super * group_size(l, width); }

// One row's group, taken apart.
struct Group {
  uint16_t halves[2];
  uint8_t bytes[2];
  uint8_t numbers[32];  // unsigned, or the bits of signed ones in Q8_0
};

int source_bytes(int format) {
  switch (format) {
    case Q8_0: return 34;
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q4_K: return 144;
    default: return 210;  // Q6_K
  }
}

void read_simple(int format, const uint8_t* block, Group& g) {
  const int n_halves = format == Q4_1 ? 2 : 1;
  std::memcpy(g.halves, block, 2 * n_halves);
  block += 2 * n_halves;
  if (format == Q8_0) {
    std::memcpy(g.numbers, block, 32);
    return;
  }
  for (int i = 0; i < 16; i++) {
    g.numbers[i] = block[i] & 15;
    g.numbers[16 + i] = block[i] >> 4;
  }
}

void read_q4_k(const uint8_t* block, int group, Group& g) {
  const uint8_t *low = block + 4, *middle = block + 8, *high = block + 12;
  if (group < 4) {
    g.bytes[0] = low[group] & 63;
    g.bytes[1] = middle[group] & 63;
  } else {
    g.bytes[0] = (high[group - 4] & 15) | (low[group - 4] >> 6) << 4;
    g.bytes[1] = (high[group - 4] >> 4) | (middle[group - 4] >> 6) << 4;
  }
  const uint8_t* packed = block + 16 + 32 * (group / 2);
  for (int i = 0; i < 32; i++) g.numbers[i] = group % 2 ? packed[i] >> 4 : packed[i] & 15;
}

void read_q6_k(const uint8_t* block, int group, Group& g) {
  std::memcpy(g.bytes, block + 192 + 2 * group, 2);
  const int half = group / 4, part = group % 4;  // four groups share 64 bytes of low and 32 of high bits
  const uint8_t *low = block + 64 * half + 32 * (part % 2), *high = block + 128 + 32 * half;
  for (int i = 0; i < 32; i++) {
    const int four = part < 2 ? low[i] & 15 : low[i] >> 4;
    g.numbers[i] = uint8_t(four | (high[i] >> (2 * part) & 3) << 4);
  }
}

void read_group(int format, const uint8_t* row, int group, Group& g) {
  if (format == Q4_K) return read_q4_k(row + group / SUPER * 144, group % SUPER, g);
  if (format == Q6_K) return read_q6_k(row + group / SUPER * 210, group % SUPER, g);
  read_simple(format, row + size_t(group) * source_bytes(format), g);
}

// Halves that a head holds for a row: where in the source's block they lie.
void read_head(int format, const uint8_t* block, uint16_t* halves) {
  if (format == Q4_K) std::memcpy(halves, block, 4);
  if (format == Q6_K) std::memcpy(halves, block + 208, 2);
}

// All bytes of a lane are written, four at a time: those of one vector lie together.
void write_numbers(const Group& g, int vectors, int width, int lane, uint8_t* out) {
  out += 4 * lane;
  const size_t step = size_t(4) * width;
  if (vectors == 8) {
    for (int v = 0; v < 8; v++) std::memcpy(out + v * step, g.numbers + 4 * v, 4);
    return;
  }
  uint8_t packed[24];
  for (int i = 0; i < 16; i++) packed[i] = uint8_t((g.numbers[i] & 15) | g.numbers[16 + i] << 4);
  if (vectors == 6)
    for (int i = 0; i < 8; i++) {
      const uint8_t* n = g.numbers + i / 4 * 16 + i % 4;
      packed[16 + i] = uint8_t(n[0] >> 4 | n[4] >> 4 << 2 | n[8] >> 4 << 4 | n[12] >> 4 << 6);
    }
  for (int v = 0; v < vectors; v++) std::memcpy(out + v * step, packed + 4 * v, 4);
}

int read_number(const uint8_t* numbers, int vectors, int width, int lane, int i) {
  const int vector = i / 4, place = lane * 4 + i % 4;
  if (vectors == 8) return int8_t(numbers[vector * width * 4 + place]);
  int number = numbers[vector % 4 * width * 4 + place] >> (vector / 4 * 4) & 15;
  if (vectors == 6) number |= (numbers[(4 + vector / 4) * width * 4 + place] >> (vector % 4 * 2) & 3) << 4;
  return number;
}

float half_at(const uint8_t* p, int i) {
  uint16_t bits;
  std::memcpy(&bits, p + 2 * i, 2);
  return half_to_float(bits);
}

void dequantize_blocks(const Matrix& w, int row, int width, float* out) {
  const Layout& l = LAYOUTS[w.format];
  const int lane = row % width;
  const uint8_t* p = static_cast<const uint8_t*>(w.data) + row / width * panel_bytes(w.format, w.columns, width);
  const uint8_t* head = p;
  for (int g = 0; g < w.columns / GROUP; g++, out += GROUP) {
    if (g % l.super == 0) {
      head = p;
      p += size_t(2) * width * l.head_halves;
    }
    const uint8_t* bytes = p + size_t(2) * width * l.group_halves;
    const uint8_t* numbers = bytes + size_t(width) * l.group_bytes;
    for (int i = 0; i < GROUP; i++) {
      const int number = read_number(numbers, l.group_vectors, width, lane, i);
      switch (w.format) {
        case Q8_0: out[i] = float(number) * half_at(p, lane); break;
        case Q4_0: out[i] = float(number - 8) * half_at(p, lane); break;
        case Q4_1: out[i] = float(number) * half_at(p, lane) + half_at(p, width + lane); break;
        case Q4_K:
          out[i] = half_at(head, lane) * float(bytes[lane]) * float(number) -
                   half_at(head, width + lane) * float(bytes[width + lane]);
          break;
        default:
          out[i] = half_at(head, lane) * float(int8_t(bytes[i / 16 * width + lane])) * float(number - 32);
      }
    }
    p += group_size(l, width);
  }
}

}  // namespace

size_t panel_bytes(int format, int columns, int width) {
  const Layout& l = LAYOUTS[format];
  return l.super ? columns / GROUP / l.super * super_size(l, width) : 0;
}

void dequantize_row(const Matrix& w, int row, int width, float* out) {
  if (w.format > BF16) return dequantize_blocks(w, row, width, out);
  const size_t start = size_t(row) * w.columns;
  if (w.format == F32) {
    std::memcpy(out, static_cast<const float*>(w.data) + start, w.columns * sizeof(float));
    return;
  }
  const uint16_t* source = static_cast<const uint16_t*>(w.data) + start;
  for (int i = 0; i < w.columns; i++)
    out[i] = w.format == F16 ? half_to_float(source[i]) : from_bits(uint32_t(source[i]) << 16);
}

void pack_panels(int format, const uint8_t* source, int rows, int columns, int width, int begin, int end, uint8_t* out) {
  const Layout& l = LAYOUTS[format];
  const size_t row_bytes = size_t(columns) / (GROUP * l.super) * source_bytes(format);
  const size_t panel = panel_bytes(format, columns, width);
  if (end >= rows && rows % width) std::memset(out + rows / width * panel, 0, panel);  // lanes without a row
  for (int row = begin; row < end && row < rows; row++) {
    const int lane = row % width;
    const uint8_t* blocks = source + row * row_bytes;
    uint8_t* p = out + row / width * panel;
    for (int g = 0; g < columns / GROUP; g++) {
      Group group;
      if (l.head_halves && g % l.super == 0) {
        uint16_t halves[2];
        read_head(format, blocks + g / l.super * size_t(source_bytes(format)), halves);
        for (int i = 0; i < l.head_halves; i++, p += 2 * width) std::memcpy(p + 2 * lane, halves + i, 2);
      }
      read_group(format, blocks, g, group);
      for (int i = 0; i < l.group_halves; i++, p += 2 * width) std::memcpy(p + 2 * lane, group.halves + i, 2);
      for (int i = 0; i < l.group_bytes; i++, p += width) p[lane] = group.bytes[i];
      write_numbers(group, l.group_vectors, width, lane, p);
      p += size_t(4) * width * l.group_vectors;
    }
  }
}

}  // namespace bimo

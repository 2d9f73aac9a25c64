// Shapes as the original framework prints them: "(4,5)". Part of tech_renaissance.h.
#ifndef TECH_RENAISSANCE_SHAPE_TEXT_HPP
#define TECH_RENAISSANCE_SHAPE_TEXT_HPP

#include "../../tr_mmap/shape.hpp"

namespace tr {
namespace detail {

/// Initialized before main(), and before every later global of a file that includes this.
inline const bool is_original_shape_text_set = (has_original_shape_text = true);

}  // namespace detail
}  // namespace tr

#endif  // TECH_RENAISSANCE_SHAPE_TEXT_HPP

// Values by name as the text of a message, and back. No I/O. tr_mmap/protocol/named_values.py is the Python side, and
// specifies the text.
#ifndef TR_MMAP_NAMED_VALUES_HPP
#define TR_MMAP_NAMED_VALUES_HPP

#include "macros_off.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "json.hpp"
#include "numbers.hpp"
#include "protocol.hpp"
#include "tensor.hpp"
#include "values.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

using TensorRefs = std::vector<std::reference_wrapper<const Tensor>>;

/// Append a value; a tensor in it is also appended to ``tensors``.
inline void append_value(std::string& out, const Value& value, TensorRefs& tensors) {
    value.visit([&](const auto& held) {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::nullptr_t>) {
            out += "null";
        } else if constexpr (std::is_same_v<Held, bool>) {
            out += held ? "true" : "false";
        } else if constexpr (std::is_same_v<Held, double>) {
            out += std::isfinite(held) ? real_word(held) : "{\"float\":\"" + real_word(held) + "\"}";
        } else if constexpr (std::is_same_v<Held, std::string>) {
            json::append_string(out, held);
        } else if constexpr (std::is_same_v<Held, Tensor>) {
            out += "{\"tensor\":" + std::to_string(tensors.size()) + "}";
            tensors.emplace_back(held);
        } else if constexpr (std::is_same_v<Held, Value::List>) {
            out += '[';
            for (const Value& each : held) {
                if (out.back() != '[') out += ',';
                append_value(out, each, tensors);
            }
            out += ']';
        } else {
            out += std::to_string(held);
        }
    });
}

/// A request whose arguments have names.
///
/// @param message the command alone.
/// @param tensors gets those of the arguments, which are sent with the request.
/// @throws BadMessage the message has words, too, or a text is not UTF-8.
inline Command named_command(const std::string& message, const Values& arguments, TensorRefs& tensors) {
    Command command = parse_command(message);
    if (!command.parameters.empty()) {
        const std::string shown = command.parameters.substr(0, 80);
        throw BadMessage("the message has words ('" + shown + "') beside arguments by name; give these names too", shown);
    }
    std::string text = "{";
    for (const auto& [name, value] : arguments) {
        if (text.size() > 1) text += ',';
        json::append_string(text, name);
        text += ':';
        append_value(text, value, tensors);
    }
    command.parameters = text + "}";
    command.form = wire::form_named;
    return command;
}

[[noreturn]] inline void bad_values(const std::string& why) {
    throw BadMessage("the message has no values by name: " + why, why);
}

inline Value to_value(const json::Value& from, const std::vector<Tensor>& tensors) {
    if (const auto* list = from.get<json::Array>()) {
        Value::List values;
        for (const json::Value& each : *list) values.push_back(to_value(each, tensors));
        return values;
    }
    if (const auto* object = from.get<json::Object>()) {
        const json::Value* const index = object->size() == 1 ? from.find("tensor") : nullptr;
        const json::Value* const number = object->size() == 1 ? from.find("float") : nullptr;
        const auto* const place = index ? index->get<std::int64_t>() : nullptr;
        const auto* const word = number ? number->get<std::string>() : nullptr;
        if (place && *place >= 0 && static_cast<std::uint64_t>(*place) < tensors.size()) {
            return tensors[static_cast<std::size_t>(*place)];
        }
        if (word && *word == "nan") return std::numeric_limits<double>::quiet_NaN();
        if (word && *word == "inf") return std::numeric_limits<double>::infinity();
        if (word && *word == "-inf") return -std::numeric_limits<double>::infinity();
        bad_values("an object in it is neither one of its " + std::to_string(tensors.size()) + " tensors nor a number");
    }
    if (const auto* text = from.get<std::string>()) return *text;
    if (const auto* truth = from.get<bool>()) return *truth;
    if (const auto* number = from.get<std::int64_t>()) return *number;
    if (const auto* number = from.get<std::uint64_t>()) return *number;
    if (const auto* number = from.get<double>()) return *number;
    return {};
}

/// The values by name of a message's text.
///
/// @param tensors of the message, which the text refers to.
/// @throws BadMessage it has none.
inline Values values_of_text(const std::string& text, const std::vector<Tensor>& tensors) {
    const json::Value all = json::parse(text);
    const auto* const object = all.get<json::Object>();
    if (!object) bad_values("it is no JSON object");
    Values values;
    for (const auto& [name, value] : *object) values.emplace(name, to_value(value, tensors));
    return values;
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_NAMED_VALUES_HPP

"""All branches of a conversation."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from tui.conversation import Conversation, Turn
from tui.widgets.bars import cut


class TreeScreen(ModalScreen[int | None]):
    """The turns as a tree, the branch that is shown in bold; gives the turn that was chosen.

    A turn without siblings stands below the one that it follows, not inside it: depth tells of branches, not of turns.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,t,q", "dismiss", "close")]

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._conversation = conversation

    def compose(self) -> ComposeResult:
        """The tree."""
        with Vertical(classes="panel") as panel:
            panel.border_title = "Branches"
            panel.border_subtitle = "Enter go there   Esc close"
            yield Tree(Text(cut(self._conversation.title or "Conversation", 60)))

    def on_mount(self) -> None:
        """Grow it, with the cursor where the conversation stands."""
        tree: Tree[int] = self.query_one(Tree)
        tree.root.expand()
        tree.guide_depth = 3
        shown = {turn.id for turn in self._conversation.path()}
        stack: list[tuple[int | None, TreeNode[int]]] = [(None, tree.root)]
        tip: TreeNode[int] | None = None
        while stack:
            parent, node = stack.pop()
            children = self._conversation.children(parent)
            while len(children) == 1:  # a run without branches
                tip = self._add(node, children[0], shown, leaf=True) or tip
                children = self._conversation.children(children[0].id)
            for child in children:
                follows = bool(self._conversation.children(child.id))
                branch = node.add(self._label(child, shown), data=child.id, expand=True, allow_expand=follows)
                if child.id == self._conversation.tip:
                    tip = branch
                stack.append((child.id, branch))
        tree.focus()
        if tip is not None:
            self.call_after_refresh(tree.move_cursor, tip)

    def _add(self, node: TreeNode[int], turn: Turn, shown: set[int], *, leaf: bool) -> TreeNode[int] | None:
        added = node.add(self._label(turn, shown), data=turn.id, allow_expand=not leaf)
        return added if turn.id == self._conversation.tip else None

    def _label(self, turn: Turn, shown: set[int]) -> Text:
        who = {"user": "You", "assistant": "Assistant", "tool": "Tool"}[turn.role]
        text = cut(turn.text or turn.thinking or turn.error or "…", max(20, self.app.size.width - 30))
        mark = "● " if turn.id in shown else "  "
        return Text.assemble(mark, (f"{who}: ", "bold" if turn.id in shown else ""), text)

    def on_tree_node_selected(self, event: Tree.NodeSelected[int]) -> None:
        """Go there."""
        if event.node.data is not None:
            self.dismiss(event.node.data)
